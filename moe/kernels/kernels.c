/* What a training step does on CPU between its matrix products, in fp32, each in one pass over memory.

   Every function works on rows or sequences [begin, end) of its arrays, so that threads share the work without
   sharing any output. Arrays are contiguous; shape letters are those of moe/router.py. NaN goes through all of
   them, so that a diverged run is seen to be one. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed to what is inlined alone */

#define W 16 /* floats of a vector: one register of AVX-512, two of AVX2, four of NEON */
#define R 8  /* queries at a time: their scores stay in registers */

typedef float vf __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * W), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))
#define LANES ((vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#if defined(__clang__)
#define TURNED(x, n) \
    __builtin_shufflevector(x, x, n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7, n + 8, n + 9, n + 10, n + 11, \
                            n + 12, n + 13, n + 14, n + 15)
#else
#define TURNED(x, n) __builtin_shuffle(x, (LANES + (n)) & 15)
#endif
#define AT(p) (*(vf *)(p))
#define ROUND_UP(n, m) (((n) + (m) - 1) / (m) * (m))

INLINE vf all(float x) { return x - (vf){0}; }
INLINE vf where(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
INLINE vf larger(vf a, vf b) { return where(b > a, b, a); }

/* Over the lanes, by halves. */
INLINE float sum(vf x)
{
    x += TURNED(x, 8);
    x += TURNED(x, 4);
    x += TURNED(x, 2);
    return x[0] + x[1];
}

INLINE float largest(vf x)
{
    x = larger(x, TURNED(x, 8));
    x = larger(x, TURNED(x, 4));
    x = larger(x, TURNED(x, 2));
    return x[0] > x[1] ? x[0] : x[1];
}

/* e^x for x in [-87, 88], what lies outside taken as the bound; relative error below 2e-7. Cephes' expf. */
INLINE vf vexp(vf x)
{
    x = where(x < -87.0f, all(-87.0f), where(x > 88.0f, all(88.0f), x));
    vf n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the low bits are the rounded integer */
    vf power = (vf)(((vi)n << 23) + 0x3f800000);
    n -= 12582912.0f;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * power;
}

/* ---- RMS norm ----------------------------------------------------------------------------------------- */

INLINE float dot(const float *a, const float *b, int n)
{
    vf total = {0};
    int i = 0;
    for (; i + W <= n; i += W) total += AT(a + i) * AT(b + i);
    float s = sum(total);
    for (; i < n; i++) s += a[i] * b[i];
    return s;
}

/* y = x / rms(x) * gain over rows of D; keeps 1 / rms(x). */
void rms_norm(const float *x, const float *gain, float eps, int D, int64_t begin, int64_t end, float *y,
              float *inverse)
{
    for (int64_t i = begin; i < end; i++) {
        const float *xi = x + i * D;
        float *yi = y + i * D, r = 1 / sqrtf(dot(xi, xi, D) / D + eps);
        for (int c = 0; c < D; c++) yi[c] = xi[c] * r * gain[c];
        inverse[i] = r;
    }
}

/* dx of one row of D from dy; adds to dgain. */
INLINE void norm_back(const float *x, const float *gain, float r, const float *dy, int D, float *dx, float *dgain)
{
    float along = 0;
    for (int c = 0; c < D; c++) dgain[c] += dy[c] * x[c] * r;
    vf total = {0};
    int c = 0;
    for (; c + W <= D; c += W) total += AT(dy + c) * AT(gain + c) * AT(x + c);
    along = sum(total);
    for (; c < D; c++) along += dy[c] * gain[c] * x[c];
    along *= r * r / D;
    for (int c = 0; c < D; c++) dx[c] = r * (dy[c] * gain[c] - x[c] * along);
}

/* dgain [D] is that of these rows alone. */
void rms_norm_back(const float *x, const float *gain, const float *inverse, const float *dy, int D, int64_t begin,
                   int64_t end, float *dx, float *dgain)
{
    memset(dgain, 0, sizeof(float) * D);
    for (int64_t i = begin; i < end; i++)
        norm_back(x + i * D, gain, inverse[i], dy + i * D, D, dx + i * D, dgain);
}

/* ---- causal attention, with the norm of queries and keys and RoPE ------------------------------------- */

typedef struct {
    int T, Q, K, C; /* tokens, query heads, key heads, channels of a head */
    float eps;
    const float *gain_query, *gain_key, *cos, *sin; /* gains [C], tables [T, C]; of the sine the 2nd half */
} heads;

/* One head of x, normed, turned, times scale: out [T, P], the columns beyond C untouched. */
INLINE void pack(const heads *a, int C, const float *x, const float *gain, float scale, int P, float *out,
                 float *inverse)
{
    int half = C / 2, row = (a->Q + 2 * a->K) * C;
    for (int t = 0; t < a->T; t++, x += row, out += P) {
        const float *cos = a->cos + (int64_t)t * C, *sin = a->sin + (int64_t)t * C + half;
        float r = 1 / sqrtf(dot(x, x, C) / C + a->eps), s = r * scale;
        for (int c = 0; c < half; c++) {
            float u = x[c] * s * gain[c], v = x[c + half] * s * gain[c + half];
            out[c] = u * cos[c] - v * sin[c];
            out[c + half] = v * cos[c] + u * sin[c];
        }
        inverse[t] = r;
    }
}

/* The gradient of what `pack` was given from that of what it gave. */
INLINE void unpack(const heads *a, int C, const float *x, const float *gain, float scale, int P, const float *dout,
                   const float *inverse, float *dx, float *dgain)
{
    int half = C / 2, row = (a->Q + 2 * a->K) * C;
    float dy[C];
    for (int t = 0; t < a->T; t++, x += row, dx += row, dout += P) {
        const float *cos = a->cos + (int64_t)t * C, *sin = a->sin + (int64_t)t * C + half;
        for (int c = 0; c < half; c++) {
            float u = dout[c] * scale, v = dout[c + half] * scale;
            dy[c] = u * cos[c] + v * sin[c];
            dy[c + half] = v * cos[c] - u * sin[c];
        }
        norm_back(x, gain, inverse[t], dy, C, dx, dgain);
    }
}

static void copy_rows(const float *x, int T, int C, int row, int P, float *out)
{
    for (int t = 0; t < T; t++) memcpy(out + (int64_t)t * P, x + (int64_t)t * row, sizeof(float) * C);
}

static void transpose(const float *x, int T, int P, int C, int TP, float *out)
{
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++) out[(int64_t)c * TP + t] = x[(int64_t)t * P + c];
}

/* acc[m] = sum over c of rows[m][c] * columns[c][j..j+W) */
INLINE void products(const float *rows, const float *columns, int C, int P, int TP, int j, vf acc[R])
{
    for (int m = 0; m < R; m++) acc[m] = all(0);
    for (int c = 0; c < C; c++) {
        vf column = AT(columns + (int64_t)c * TP + j);
        for (int m = 0; m < R; m++) acc[m] += rows[m * P + c] * column;
    }
}

/* out[m] = sum over j of weights[m][j] * rows[j], W channels at a time */
INLINE void weigh(const float *weights, const float *rows, int n, int P, int TP, float *out)
{
    for (int c = 0; c < P; c += W) {
        vf acc[R];
        for (int m = 0; m < R; m++) acc[m] = all(0);
        for (int j = 0; j < n; j++) {
            vf row = AT(rows + (int64_t)j * P + c);
            for (int m = 0; m < R; m++) acc[m] += weights[m * TP + j] * row;
        }
        for (int m = 0; m < R; m++) AT(out + m * P + c) = acc[m];
    }
}

/* out[j] += sum over m of weights[m][j] * rows[m] */
INLINE void spread(const float *weights, const float *rows, int n, int P, int TP, float *out)
{
    for (int c = 0; c < P; c += W) {
        vf row[R];
        for (int m = 0; m < R; m++) row[m] = AT(rows + m * P + c);
        for (int j = 0; j < n; j++) {
            vf total = AT(out + (int64_t)j * P + c);
            for (int m = 0; m < R; m++) total += weights[m * TP + j] * row[m];
            AT(out + (int64_t)j * P + c) = total;
        }
    }
}

typedef struct { float *next; } arena;
INLINE float *take(arena *a, int64_t n)
{
    float *p = a->next;
    a->next += ROUND_UP(n, W);
    return p;
}

INLINE int forward(const float *x, const heads *a, int C, int64_t begin, int64_t end, float *y, float *lse)
{
    int T = a->T, Q = a->Q, K = a->K, row = (Q + 2 * K) * C, share = Q / K;
    int P = ROUND_UP(C, W), TR = ROUND_UP(T, R), TP = ROUND_UP(T, W);
    float scale = 1 / sqrtf(C);
    int64_t size = (int64_t)TP * P * 4 + (int64_t)C * TP + R * TP + TP + R * P + 16 * W;
    float *memory = calloc(size, sizeof(float));
    if (!memory) return 1;
    arena all_of_it = {memory};
    float *q = take(&all_of_it, (int64_t)TR * P), *k = take(&all_of_it, (int64_t)TP * P);
    float *v = take(&all_of_it, (int64_t)TP * P), *k_T = take(&all_of_it, (int64_t)C * TP);
    float *p = take(&all_of_it, R * TP), *inverse = take(&all_of_it, TP), *out = take(&all_of_it, R * P);

    for (int64_t b = begin; b < end; b++)
        for (int g = 0; g < K; g++) {
            const float *xb = x + b * T * row;
            pack(a, C, xb + (Q + g) * C, a->gain_key, 1, P, k, inverse);
            copy_rows(xb + (Q + K + g) * C, T, C, row, P, v);
            transpose(k, T, P, C, TP, k_T);
            for (int h = g * share; h < (g + 1) * share; h++) {
                pack(a, C, xb + h * C, a->gain_query, scale, P, q, inverse);
                for (int i = 0; i < T; i += R) {
                    int n = i + R < T ? ROUND_UP(i + R, W) : TP, rows = T - i < R ? T - i : R;
                    vf most[R];
                    for (int m = 0; m < R; m++) most[m] = all(-INFINITY);
                    for (int j = 0; j < n; j += W) {
                        vf acc[R];
                        products(q + (int64_t)i * P, k_T, C, P, TP, j, acc);
                        for (int m = 0; m < R; m++) {
                            acc[m] = where(LANES > i + m - j, all(-INFINITY), acc[m]); /* later tokens */
                            AT(p + m * TP + j) = acc[m];
                            most[m] = larger(most[m], acc[m]);
                        }
                    }
                    float share_of[R];
                    for (int m = 0; m < R; m++) {
                        float top = largest(most[m]);
                        vf total = {0};
                        for (int j = 0; j < n; j += W) {
                            vf s = AT(p + m * TP + j);
                            vf e = where(s == -INFINITY, all(0), vexp(s - top));
                            AT(p + m * TP + j) = e;
                            total += e;
                        }
                        float whole = sum(total);
                        share_of[m] = 1 / whole;
                        if (m < rows) lse[(b * Q + h) * T + i + m] = top + logf(whole);
                    }
                    weigh(p, v, n, P, TP, out);
                    for (int m = 0; m < rows; m++) {
                        float *to = y + ((b * T + i + m) * Q + h) * C;
                        for (int c = 0; c < C; c++) to[c] = out[m * P + c] * share_of[m];
                    }
                }
            }
        }
    free(memory);
    return 0;
}

INLINE int backward(const float *x, const heads *a, int C, const float *y, const float *lse, const float *dy,
                    int64_t begin, int64_t end, float *dx, float *dgain_query, float *dgain_key)
{
    int T = a->T, Q = a->Q, K = a->K, row = (Q + 2 * K) * C, share = Q / K;
    int P = ROUND_UP(C, W), TR = ROUND_UP(T, R), TP = ROUND_UP(T, W);
    float scale = 1 / sqrtf(C);
    int64_t size = (int64_t)(TP + W) * P * 8 + 2 * (int64_t)C * TP + 2 * R * TP + 4 * TP + 32 * W;
    float *memory = calloc(size, sizeof(float));
    if (!memory) return 1;
    arena all_of_it = {memory};
    float *q = take(&all_of_it, (int64_t)TR * P), *k = take(&all_of_it, (int64_t)TP * P);
    float *v = take(&all_of_it, (int64_t)TP * P), *d = take(&all_of_it, (int64_t)TR * P);
    float *dq = take(&all_of_it, (int64_t)TR * P), *dk = take(&all_of_it, (int64_t)TP * P);
    float *dv = take(&all_of_it, (int64_t)TP * P);
    float *k_T = take(&all_of_it, (int64_t)C * TP), *v_T = take(&all_of_it, (int64_t)C * TP);
    float *p = take(&all_of_it, R * TP), *ds = take(&all_of_it, R * TP);
    float *inverse_q = take(&all_of_it, TP), *inverse_k = take(&all_of_it, TP), *along = take(&all_of_it, TP);
    memset(dgain_query, 0, sizeof(float) * C);
    memset(dgain_key, 0, sizeof(float) * C);

    for (int64_t b = begin; b < end; b++)
        for (int g = 0; g < K; g++) {
            const float *xb = x + b * T * row;
            float *dxb = dx + b * T * row;
            pack(a, C, xb + (Q + g) * C, a->gain_key, 1, P, k, inverse_k);
            copy_rows(xb + (Q + K + g) * C, T, C, row, P, v);
            transpose(k, T, P, C, TP, k_T);
            transpose(v, T, P, C, TP, v_T);
            memset(dk, 0, sizeof(float) * TP * P);
            memset(dv, 0, sizeof(float) * TP * P);
            for (int h = g * share; h < (g + 1) * share; h++) {
                const float *yb = y + (b * T * Q + h) * C, *db = dy + (b * T * Q + h) * C;
                const float *lse_h = lse + (b * Q + h) * T;
                pack(a, C, xb + h * C, a->gain_query, scale, P, q, inverse_q);
                copy_rows(db, T, C, Q * C, P, d);
                for (int t = 0; t < T; t++) along[t] = dot(yb + t * Q * C, db + t * Q * C, C);
                for (int i = 0; i < T; i += R) {
                    int n = i + R < T ? ROUND_UP(i + R, W) : TP;
                    for (int j = 0; j < n; j += W) {
                        vf s[R], dp[R];
                        products(q + (int64_t)i * P, k_T, C, P, TP, j, s);
                        products(d + (int64_t)i * P, v_T, C, P, TP, j, dp);
                        for (int m = 0; m < R; m++) {
                            int t = i + m < T ? i + m : T - 1; /* rows beyond the last have no gradient */
                            vf e = where(LANES > i + m - j, all(0), vexp(s[m] - lse_h[t]));
                            AT(p + m * TP + j) = e;
                            AT(ds + m * TP + j) = e * (dp[m] - along[t]);
                        }
                    }
                    if (i + R > T) { /* nor any share in those of keys and values */
                        memset(p + (T - i) * TP, 0, sizeof(float) * (i + R - T) * TP);
                        memset(ds + (T - i) * TP, 0, sizeof(float) * (i + R - T) * TP);
                    }
                    weigh(ds, k, n, P, TP, dq + (int64_t)i * P);
                    spread(ds, q + (int64_t)i * P, n, P, TP, dk);
                    spread(p, d + (int64_t)i * P, n, P, TP, dv);
                }
                unpack(a, C, xb + h * C, a->gain_query, scale, P, dq, inverse_q, dxb + h * C, dgain_query);
            }
            unpack(a, C, xb + (Q + g) * C, a->gain_key, 1, P, dk, inverse_k, dxb + (Q + g) * C, dgain_key);
            for (int t = 0; t < T; t++)
                memcpy(dxb + (int64_t)t * row + (Q + K + g) * C, dv + (int64_t)t * P, sizeof(float) * C);
        }
    free(memory);
    return 0;
}

/* The usual sizes of heads have code of their own, in which the compiler knows C. */
#define BY_SIZE(call)                                                                                               \
    switch (a->C) {                                                                                                 \
    case 16: { enum { C = 16 }; return call; }                                                                      \
    case 32: { enum { C = 32 }; return call; }                                                                      \
    case 64: { enum { C = 64 }; return call; }                                                                      \
    default: { int C = a->C; return call; }                                                                         \
    }

/* x [B, T, (Q + 2K) * C] holds queries, keys and values; y [B, T, Q * C]. Keeps log-sum-exp [B, Q, T]. Returns
   1 where memory is short. */
int attend(const float *x, const heads *a, int64_t begin, int64_t end, float *y, float *lse)
{
    BY_SIZE(forward(x, a, C, begin, end, y, lse))
}

/* dx from dy, and the gains' gradients [C] of these sequences alone; probabilities are computed again. */
int attend_back(const float *x, const heads *a, const float *y, const float *lse, const float *dy, int64_t begin,
                int64_t end, float *dx, float *dgain_query, float *dgain_key)
{
    BY_SIZE(backward(x, a, C, y, lse, dy, begin, end, dx, dgain_query, dgain_key))
}

/* ---- router ------------------------------------------------------------------------------------------- */

/* Of each row of logits [N, E]: probabilities, the k experts with the largest (the first of equals), their gates,
   divided by their sum if `renormalise`, which is kept [N], and z [N] = log-sum-exp - ln E. Sums over these rows
   alone: probabilities [E], then slots [E], squares of z, entropies. */
void route(const float *logits, int E, int k, int renormalise, int64_t begin, int64_t end, float *probs, float *gates,
           int64_t *experts, float *whole, float *z, double *sums)
{
    int P = ROUND_UP(E, W);
    float row[P], left[P];
    memset(sums, 0, sizeof(double) * (2 * E + 2));
    for (int64_t n = begin; n < end; n++) {
        const float *l = logits + n * E;
        float *p = probs + n * E, top = l[0], along = 0, of_gates = 0;
        for (int e = 1; e < E; e++) top = l[e] > top ? l[e] : top;
        for (int e = 0; e < E; e++) row[e] = l[e] - top;
        for (int e = E; e < P; e++) row[e] = -87;
        for (int e = 0; e < P; e += W) AT(row + e) = vexp(AT(row + e));
        float total = 0;
        for (int e = 0; e < E; e++) total += row[e];
        float log_sum = top + logf(total);
        for (int e = 0; e < E; e++) {
            p[e] = left[e] = row[e] / total;
            along += p[e] * l[e];
            sums[e] += p[e];
        }
        for (int i = 0; i < k; i++) {
            int best = -1;
            for (int e = 0; e < E; e++)
                if (left[e] != -1 && (best < 0 || left[e] > left[best])) best = e;
            left[best] = -1;
            experts[n * k + i] = best;
            gates[n * k + i] = p[best];
            of_gates += p[best];
            sums[E + best] += 1;
        }
        if (renormalise)
            for (int i = 0; i < k; i++) gates[n * k + i] /= of_gates;
        whole[n] = of_gates;
        z[n] = log_sum - logf(E);
        sums[2 * E] += (double)z[n] * z[n];
        sums[2 * E + 1] += log_sum - along;
    }
}

/* dlogits from the gradients of the gates [N, k], of each probability's sum [E] and of the sum of z's squares. */
void route_back(const float *probs, const float *gates, const int64_t *experts, const float *whole, const float *z,
                const float *dgates, const float *dsums, float dsquares, int E, int k, int renormalise, int64_t begin,
                int64_t end, float *dlogits)
{
    float d[E];
    for (int64_t n = begin; n < end; n++) {
        const float *p = probs + n * E;
        float along = 0, shared = 0;
        memcpy(d, dsums, sizeof(float) * E);
        if (renormalise)
            for (int i = 0; i < k; i++) shared += dgates[n * k + i] * gates[n * k + i];
        for (int i = 0; i < k; i++)
            d[experts[n * k + i]] += renormalise ? (dgates[n * k + i] - shared) / whole[n] : dgates[n * k + i];
        for (int e = 0; e < E; e++) along += p[e] * d[e];
        along -= 2 * z[n] * dsquares;
        for (int e = 0; e < E; e++) dlogits[n * E + e] = p[e] * (d[e] - along);
    }
}

/* ---- experts ------------------------------------------------------------------------------------------ */

/* A stable counting sort of slots n*k + i by expert: how many each expert has [E], and the slot at each place. */
void sort_slots(const int64_t *experts, int64_t S, int E, int64_t *counts, int64_t *slot)
{
    int64_t next[E], first = 0;
    memset(counts, 0, sizeof(int64_t) * E);
    for (int64_t s = 0; s < S; s++) counts[experts[s]]++;
    for (int e = 0; e < E; e++) {
        next[e] = first;
        first += counts[e];
    }
    for (int64_t s = 0; s < S; s++) slot[next[experts[s]]++] = s;
}

/* out[i] = x[slot[i] / k], the token of each slot: [n, D]. */
void gather(const float *x, const int64_t *slot, int k, int D, int64_t begin, int64_t end, float *out)
{
    for (int64_t i = begin; i < end; i++) memcpy(out + i * D, x + slot[i] / k * D, sizeof(float) * D);
}

/* out[slot[i] / k] += y[i]. The slots of one expert are of different tokens. */
void scatter_add(const float *y, const int64_t *slot, int k, int D, int64_t begin, int64_t end, float *out)
{
    for (int64_t i = begin; i < end; i++) {
        const float *from = y + i * D;
        float *to = out + slot[i] / k * D;
        for (int c = 0; c < D; c++) to[c] += from[c];
    }
}

/* a = silu(gate) * up * g: h [n, 2H] holds gate and up, g is gates[slot]; a [n, H]. h is copied to `kept`, if any:
   it was written to a small place that stays in cache, which a product does faster than to new memory. */
void swiglu(const float *h, const float *gates, const int64_t *slot, int H, int64_t begin, int64_t end, float *a,
            float *kept)
{
    for (int64_t i = begin; i < end; i++) {
        const float *gate = h + i * 2 * H, *up = gate + H;
        float *to = a + i * H, g = gates[slot[i]];
        int c = 0;
        for (; c + W <= H; c += W) {
            vf x = AT(gate + c);
            AT(to + c) = x / (1 + vexp(-x)) * AT(up + c) * g;
        }
        for (; c < H; c++) to[c] = gate[c] / (1 + expf(-gate[c])) * up[c] * g;
        if (kept) memcpy(kept + i * 2 * H, gate, sizeof(float) * 2 * H);
    }
}

/* From da [S, H]: dh [S, 2H], dgates at each slot, and a once more. */
void swiglu_back(const float *h, const float *gates, const int64_t *slot, const float *da, int H, int64_t begin,
                 int64_t end, float *dh, float *dgates, float *a)
{
    for (int64_t i = begin; i < end; i++) {
        const float *gate = h + i * 2 * H, *up = gate + H, *d = da + i * H;
        float *dgate = dh + i * 2 * H, *dup = dgate + H, *to = a + i * H, g = gates[slot[i]];
        vf total = {0};
        int c = 0;
        for (; c + W <= H; c += W) {
            vf x = AT(gate + c), u = AT(up + c), s = 1 / (1 + vexp(-x)), silu = x * s, e = AT(d + c);
            total += e * silu * u;
            AT(to + c) = silu * u * g;
            AT(dup + c) = e * g * silu;
            AT(dgate + c) = e * g * u * (s + silu * (1 - s));
        }
        float whole = sum(total);
        for (; c < H; c++) {
            float s = 1 / (1 + expf(-gate[c])), silu = gate[c] * s;
            whole += d[c] * silu * up[c];
            to[c] = silu * up[c] * g;
            dup[c] = d[c] * g * silu;
            dgate[c] = d[c] * g * up[c] * (s + silu * (1 - s));
        }
        dgates[slot[i]] = whole;
    }
}

/* ---- loss --------------------------------------------------------------------------------------------- */

/* logits [n, V] become scale * (softmax - one-hot of the target), and losses [n] the cross-entropies. Returns 1
   at a target that is none. */
int cross_entropy(float *logits, const int64_t *targets, int V, float scale, int64_t begin, int64_t end,
                   float *losses)
{
    for (int64_t i = begin; i < end; i++) {
        float *p = logits + i * V, top = p[0], whole = 0;
        int64_t target = targets[i];
        if (target < 0 || target >= V) return 1;
        int c = 0;
        vf most = all(p[0]), total = {0};
        for (; c + W <= V; c += W) most = larger(most, AT(p + c));
        for (int l = 0; l < W; l++) top = most[l] > top ? most[l] : top;
        for (; c < V; c++) top = p[c] > top ? p[c] : top;
        float chosen = p[target] - top;
        for (c = 0; c + W <= V; c += W) {
            vf e = vexp(AT(p + c) - top);
            AT(p + c) = e;
            total += e;
        }
        whole = sum(total);
        for (; c < V; c++) whole += p[c] = expf(p[c] - top);
        losses[i] = logf(whole) - chosen;
        float by = scale / whole;
        for (c = 0; c < V; c++) p[c] *= by;
        p[target] -= scale;
    }
    return 0;
}
