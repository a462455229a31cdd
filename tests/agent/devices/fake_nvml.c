/* NVIDIA's management library as far as the agent calls it, answering from the text file that $FAKE_NVML names:
     driver VERSION | init STATUS | gpu UUID MINOR TOTAL FREE HEAT MILLIWATTS USE MODEL...
     proc GPU PID BYTES USE (a compute process; BYTES or USE -1: not told)
     hang 1 (no call returns while it says so)
   The file is read anew at each call, so that a test changes it while the agent looks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define NOT_SUPPORTED 3
#define NO_PERMISSION 4
#define NOT_FOUND 6
#define TOO_SMALL 7

typedef struct { char uuid[96], model[96]; unsigned minor, heat, power, use; unsigned long long total, free; } Gpu;
typedef struct { int gpu, use; unsigned pid; long long bytes; } Proc;
typedef struct { unsigned pid; unsigned long long memory; unsigned gi, ci; } Info;
typedef struct { unsigned pid; unsigned long long stamp; unsigned sm, mem, enc, dec; } Sample;
static struct { char driver[80]; int init, hang, gpus, procs; Gpu gpu[8]; Proc proc[32]; } now;

static void read_state(void) {
    char line[512];
    FILE *file = fopen(getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "", "r");
    memset(&now, 0, sizeof now);
    if (!file) { now.init = 9; return; }
    while (fgets(line, sizeof line, file)) {
        Gpu *g = &now.gpu[now.gpus];
        Proc *p = &now.proc[now.procs];
        if (sscanf(line, "driver %79s", now.driver) == 1 || sscanf(line, "init %d", &now.init) == 1
            || sscanf(line, "hang %d", &now.hang) == 1) continue;
        if (sscanf(line, "gpu %95s %u %llu %llu %u %u %u %95[^\n]", g->uuid, &g->minor, &g->total, &g->free, &g->heat,
                   &g->power, &g->use, g->model) == 8) now.gpus++;
        else if (sscanf(line, "proc %d %u %lld %d", &p->gpu, &p->pid, &p->bytes, &p->use) == 4) now.procs++;
    }
    fclose(file);
}

static void look(void) { while (read_state(), now.hang) usleep(10000); }

static Gpu *of(void *handle) { look(); return &now.gpu[(long)handle - 1]; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; look(); return now.init; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int status) { return status == 9 ? "Driver Not Loaded" : status == 18 ? "Driver/library version mismatch" : "Unknown Error"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { look(); snprintf(out, size, "%s", now.driver); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { look(); *count = now.gpus; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned at, void **handle) {
    look();
    if (!strcmp(now.gpu[at].uuid, "LOST")) return 15;
    *handle = (void *)(long)(at + 1);
    return SUCCESS;
}
int nvmlDeviceGetUUID(void *h, char *out, unsigned size) { snprintf(out, size, "%s", of(h)->uuid); return SUCCESS; }
int nvmlDeviceGetName(void *h, char *out, unsigned size) { snprintf(out, size, "%s", of(h)->model); return SUCCESS; }
int nvmlDeviceGetMinorNumber(void *h, unsigned *out) { *out = of(h)->minor; return SUCCESS; }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *out) {
    Gpu *g = of(h);
    out[0] = g->total; out[1] = g->free; out[2] = g->total - g->free;
    return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(void *h, unsigned *out) { out[0] = of(h)->use; out[1] = 0; return SUCCESS; }
int nvmlDeviceGetPowerUsage(void *h, unsigned *out) { *out = of(h)->power; return SUCCESS; }
int nvmlDeviceGetPowerManagementLimit(void *h, unsigned *out) { (void)h; *out = 300000; return SUCCESS; }
int nvmlDeviceGetPowerManagementLimitConstraints(void *h, unsigned *low, unsigned *high) { (void)h; *low = 100000; *high = 300000; return SUCCESS; }
int nvmlDeviceSetPowerManagementLimit(void *h, unsigned limit) { (void)h; (void)limit; return NO_PERMISSION; }
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *out) { (void)sensor; *out = of(h)->heat; return SUCCESS; }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned *count, Info *out) { (void)h; (void)out; *count = 0; return SUCCESS; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *count, Info *out) {
    unsigned found = 0, room = *count;
    of(h);
    for (int at = 0; at < now.procs; at++) {
        if (now.proc[at].gpu != (long)h - 1) continue;
        if (out && found < room) {
            out[found] = (Info){now.proc[at].pid, (unsigned long long)now.proc[at].bytes, 0, 0};
        }
        found++;
    }
    *count = found;
    return found && (!out || found > room) ? TOO_SMALL : SUCCESS;
}
int nvmlDeviceGetProcessUtilization(void *h, Sample *out, unsigned *count, unsigned long long since) {
    unsigned found = 0, room = *count;
    of(h);
    for (int at = 0; at < now.procs; at++) {
        if (now.proc[at].gpu != (long)h - 1) continue;
        if (now.proc[at].use < 0) return NOT_SUPPORTED;
        if (out && found < room) out[found] = (Sample){now.proc[at].pid, since + 1000 + found, now.proc[at].use, 0, 0, 0};
        found++;
    }
    *count = found;
    if (!found) return NOT_FOUND;
    return !out || found > room ? TOO_SMALL : SUCCESS;
}
