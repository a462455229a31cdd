/* CUDA's driver interface as far as the wiping program and the benchmark call it. The device's memory is the file that
   $FAKE_CUDA names: what is allocated is a part of it, and memset writes there, so that a test sees what was wiped.
   A piece larger than $FAKE_CUDA_PIECE cannot be had, as where memory is in fragments. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static char *memory;
static unsigned long long total, used;
#define base ((unsigned long long)memory)

int cuInit(unsigned flags) {
    struct stat st;
    (void)flags;
    int fd = open(getenv("FAKE_CUDA") ? getenv("FAKE_CUDA") : "", O_RDWR);
    if (fd < 0) return 100;
    fstat(fd, &st);
    total = st.st_size;
    memory = mmap(0, total, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return memory == MAP_FAILED ? 2 : 0;
}
int cuDeviceGet(int *device, int at) {
    if (at || !getenv("CUDA_VISIBLE_DEVICES") || strcmp(getenv("CUDA_VISIBLE_DEVICES"), "GPU-a")) return 101;
    *device = 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = memory; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return 0; }
int cuCtxSetCurrent(void *context) { return context ? 0 : 201; }
int cuCtxSynchronize(void) { return 0; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *all) { *free_bytes = total - used; *all = total; return 0; }
int cuMemAlloc_v2(unsigned long long *out, size_t size) {
    unsigned long long piece = getenv("FAKE_CUDA_PIECE") ? strtoull(getenv("FAKE_CUDA_PIECE"), 0, 10) : total;
    if (size > piece || size > total - used) return 2;
    *out = base + used;
    used += size;
    return 0;
}
int cuMemFree_v2(unsigned long long at) { (void)at; return 0; }
int cuMemsetD8_v2(unsigned long long at, unsigned char value, size_t size) {
    memset(memory + (at - base), value, size);
    return 0;
}
int cuMemsetD32_v2(unsigned long long at, unsigned value, size_t count) {
    for (size_t i = 0; i < count; i++) memcpy(memory + (at - base) + 4 * i, &value, 4);
    return 0;
}
int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t size) { memcpy(memory + (to - base), from, size); return 0; }
int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t size) { memcpy(to, memory + (from - base), size); return 0; }
