/* The one product of cuBLAS that the benchmark asks for, on the host's memory; $FAKE_CUBLAS_LIES has it do nothing. */
#include <stdlib.h>

int cublasCreate_v2(void **handle) { *handle = (void *)1; return 0; }
int cublasSgemm_v2(void *handle, int left, int right, int m, int n, int k, const float *alpha, const float *a, int lda,
                   const float *b, int ldb, const float *beta, float *c, int ldc) {
    (void)handle; (void)left; (void)right;
    if (getenv("FAKE_CUBLAS_LIES")) return 0;
    for (int column = 0; column < n; column++)
        for (int row = 0; row < m; row++) {
            float sum = 0;
            for (int at = 0; at < k; at++) sum += a[row + at * lda] * b[at + column * ldb];
            c[row + column * ldc] = *alpha * sum + (*beta ? *beta * c[row + column * ldc] : 0);
        }
    return 0;
}
