/* A C library whose n-th call that touches a folder fails: the disk errors of stress/enospc.py, without a disk.
 *
 *     cc -shared -fPIC -O1 -o faulty.so faulty.c -ldl;  LD_PRELOAD=./faulty.so python …
 *     fault_arm("/out", kinds, n, errno, sticky)   the n-th call of these kinds fails; sticky: and all after it
 *     fault_count()                                calls of these kinds so far
 *     fault_fired()                                how many of them failed
 *
 * Calls are counted over the process that was armed and all that it forks, in memory that they share.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITES = 1, READS = 2 };
#define MOST_FDS 4096

static char prefix[4096];
static int kinds, nth, code, sticky;
static struct { int counted, fired; } *shared;
static unsigned char ours[MOST_FDS];

void fault_arm(const char *folder, int which, int n, int error, int all) {
    strncpy(prefix, folder, sizeof prefix - 1);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) abort();
    kinds = which, nth = n, code = error, sticky = all;
}

int fault_count(void) { return shared->counted; }
int fault_fired(void) { return shared->fired; }

static int inside(int dir, const char *path) {
    char where[4096], link[64];
    if (!prefix[0] || !path) return 0;
    if (path[0] == '/' || dir == AT_FDCWD) return !strncmp(path, prefix, strlen(prefix));
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    ssize_t size = readlink(link, where, sizeof where - 1);
    if (size < 0) return 0;
    where[size] = 0;
    return !strncmp(where, prefix, strlen(prefix));
}

static int fails(int kind) {
    if (!(kinds & kind)) return 0;
    int now = __atomic_add_fetch(&shared->counted, 1, __ATOMIC_SEQ_CST);
    if (!nth || now < nth || (now > nth && !sticky)) return 0;
    __atomic_add_fetch(&shared->fired, 1, __ATOMIC_SEQ_CST);
    errno = code;
    return 1;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)
#define OURS(fd) ((fd) >= 0 && (fd) < MOST_FDS ? ours[fd] : 0)

static int opened(int fd, int mine, int flags) {
    if (fd >= 0 && fd < MOST_FDS) ours[fd] = mine ? (flags & O_ACCMODE) != O_RDONLY ? WRITES : READS : 0;
    return fd;
}

#define OPEN(symbol)                                                                             \
    int symbol(const char *path, int flags, ...) {                                               \
        REAL(int, #symbol, const char *, int, ...);                                              \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, int); va_end(list);      \
        int mine = inside(AT_FDCWD, path);                                                       \
        if (mine && fails(flags & O_CREAT ? WRITES : READS)) return -1;                          \
        return opened(real(path, flags, mode), mine, flags);                                            \
    }
#define OPENAT(symbol)                                                                           \
    int symbol(int dir, const char *path, int flags, ...) {                                      \
        REAL(int, #symbol, int, const char *, int, ...);                                         \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, int); va_end(list);      \
        int mine = inside(dir, path);                                                            \
        if (mine && fails(flags & O_CREAT ? WRITES : READS)) return -1;                          \
        return opened(real(dir, path, flags, mode), mine, flags);                                       \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return OURS(fd) && fails(WRITES) ? -1 : real(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *pieces, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return OURS(fd) && fails(WRITES) ? -1 : real(fd, pieces, count);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
    return OURS(fd) && fails(WRITES) ? -1 : real(fd, data, size, at);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }
ssize_t read(int fd, void *data, size_t size) {
    REAL(ssize_t, "read", int, void *, size_t);
    return OURS(fd) && fails(READS) ? -1 : real(fd, data, size);
}
ssize_t pread64(int fd, void *data, size_t size, off_t at) {
    REAL(ssize_t, "pread64", int, void *, size_t, off_t);
    return OURS(fd) && fails(READS) ? -1 : real(fd, data, size, at);
}
ssize_t pread(int fd, void *data, size_t size, off_t at) { return pread64(fd, data, size, at); }
ssize_t preadv64(int fd, const struct iovec *pieces, int count, off_t at) {
    REAL(ssize_t, "preadv64", int, const struct iovec *, int, off_t);
    return OURS(fd) && fails(READS) ? -1 : real(fd, pieces, count, at);
}
ssize_t preadv(int fd, const struct iovec *pieces, int count, off_t at) { return preadv64(fd, pieces, count, at); }
int fsync(int fd) {
    REAL(int, "fsync", int);
    return OURS(fd) && fails(WRITES) ? -1 : real(fd);
}
int ftruncate64(int fd, off_t size) {
    REAL(int, "ftruncate64", int, off_t);
    return OURS(fd) && fails(WRITES) ? -1 : real(fd, size);
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int close(int fd) { /* the descriptor is gone either way, as on Linux; only of what was written can it fail */
    REAL(int, "close", int);
    int mine = OURS(fd), failed = mine == WRITES && fails(WRITES), error = errno;
    if (mine) ours[fd] = 0;
    int result = real(fd);
    if (failed) { errno = error; return -1; }
    return result;
}
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return inside(AT_FDCWD, to) && fails(WRITES) ? -1 : real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    return inside(b, to) && fails(WRITES) ? -1 : real(a, from, b, to);
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    return inside(AT_FDCWD, path) && fails(WRITES) ? -1 : real(path);
}
int unlinkat(int dir, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    return inside(dir, path) && fails(WRITES) ? -1 : real(dir, path, flags);
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    return inside(AT_FDCWD, path) && fails(WRITES) ? -1 : real(path);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return inside(AT_FDCWD, path) && fails(WRITES) ? -1 : real(path, mode);
}
int mkdirat(int dir, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    return inside(dir, path) && fails(WRITES) ? -1 : real(dir, path, mode);
}
