"""lm-evaluation-harness on stored states; `python -m moe.lm_eval --help`. Nothing else imports lm_eval."""
