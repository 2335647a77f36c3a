/* An LD_PRELOAD object that sees every libc call which can change a file, its durability or a lock.
 *
 * Calls on paths under one root are counted ("boundaries"); at a chosen one a fault happens. Every
 * call is logged before it is made, one line: KIND NAME PATH PATH2, separated by tabs, where KIND is
 * "in" (counted), "hit" (counted, and the fault happened here) or "out" (outside of the root).
 * Nothing happens before fault_arm, which is called in a freshly forked child.
 *
 * A FILE that is written through stdio would hide its writes: glibc does not go through the PLT
 * there. libstdc++'s filebuf opens with fopen and then calls write and writev, which are seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NONE, KILL_BEFORE, KILL_AFTER, SHORT, PARTIAL, ERRNO_ONCE, ERRNO_FROM, NOLOCK, CLOCK };
enum { GO, COUNTED, THEN_KILL, PREFIX, LESS, FAIL };

static char root[PATH_MAX];
static long fault_at;
static int fault_kind;
static long fault_arg;
static int log_fd = -1;
static atomic_long calls;
static atomic_long clock_calls;
static int armed;

/* What the real call is: looked up once, by the name of the variable. */
#define REAL(name)                                                   \
    static __typeof__(&name) real_##name;                            \
    if (!real_##name) real_##name = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static void put(const char *text) {
    ssize_t left = (ssize_t)strlen(text);
    while (left > 0) {
        ssize_t done = syscall(SYS_write, log_fd, text, left);
        if (done <= 0) return;
        text += done;
        left -= done;
    }
}

/* `log` is an open descriptor, a pipe's: it outlives a kill, and no file size limit holds for it. */
void fault_arm(const char *folder, long at, int kind, long arg, int log) {
    snprintf(root, sizeof root, "%s", folder);
    fault_at = at;
    fault_kind = kind;
    fault_arg = arg;
    atomic_store(&calls, 0);
    atomic_store(&clock_calls, 0);
    log_fd = log;
    armed = 1;
}

long fault_count(void) { return atomic_load(&calls); }

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* The absolute name of `path` seen from folder `dir`, or of the open file `dir` without a path. */
static const char *resolve(int dir, const char *path, char *out) {
    char link[64], base[PATH_MAX];
    if (path && path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return out;
    }
    if (dir == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return NULL;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t n = readlink(link, base, sizeof base - 1);
        if (n <= 0) return NULL;
        base[n] = 0;
    }
    if (path && path[0])
        snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path);
    else
        snprintf(out, PATH_MAX, "%.4000s", base);
    return out;
}

static int under_root(const char *path) {
    size_t n = strlen(root);
    return path && !strncmp(path, root, n) && (path[n] == '/' || path[n] == 0);
}

static int is_one_of(const char *name, const char *const *names) {
    for (; *names; names++)
        if (!strcmp(name, *names)) return 1;
    return 0;
}

/* Which errors a call can give in the world: a full disk does not stop unlink or flock. */
int fault_can_give(const char *name, long number) {
    static const char *const grows[] = {"open", "fopen", "creat", "write", "writev", "pwrite",
        "pwritev", "rename", "link", "symlink", "mkdir", "fsync", "fdatasync", "copy_file_range",
        "sendfile", "posix_fallocate", "mknod", NULL};
    static const char *const named[] = {"open", "fopen", "creat", "rename", "link", "symlink",
        "unlink", "mkdir", "rmdir", "truncate", "chmod", "utimensat", "mknod", NULL};
    if (number == ENOSPC || number == EDQUOT) return is_one_of(name, grows);
    if (number == EACCES || number == EPERM || number == EROFS) return is_one_of(name, named);
    return 1;
}

static void tell(const char *kind, const char *name, const char *path, const char *other) {
    char line[3 * PATH_MAX];
    snprintf(line, sizeof line, "%s\t%s\t%s\t%s\n", kind, name, path ? path : "",
             other ? other : "");
    put(line);
}

static int enter(const char *name, int dir, const char *path, int dir2, const char *path2) {
    char one[PATH_MAX], two[PATH_MAX];
    if (!armed) return GO;
    int before = errno;
    const char *first = resolve(dir, path, one);
    const char *second = path2 ? resolve(dir2, path2, two) : NULL;
    int verdict = GO, hit = 0;
    if (!under_root(first) && !under_root(second)) {
        if (first && first[0] == '/' && strncmp(first, "/dev/", 5) && strncmp(first, "/proc/", 6))
            tell("out", name, first, second);
        errno = before;
        return GO;
    }
    long n = atomic_fetch_add(&calls, 1) + 1;
    verdict = COUNTED;
    if (fault_kind == ERRNO_ONCE || fault_kind == ERRNO_FROM) {
        int reached = fault_kind == ERRNO_ONCE ? n == fault_at : n >= fault_at;
        hit = reached && fault_can_give(name, fault_arg);
        if (hit) verdict = FAIL;
    } else if (n == fault_at && fault_kind >= KILL_BEFORE && fault_kind <= PARTIAL) {
        static const int verdicts[] = {GO, COUNTED, THEN_KILL, PREFIX, LESS};
        hit = 1;
        verdict = verdicts[fault_kind];
    }
    tell(hit ? "hit" : "in", name, first, second);
    if (hit && fault_kind == KILL_BEFORE) die();
    errno = verdict == FAIL ? (int)fault_arg : before;
    return verdict;
}

static void leave(int verdict) {
    if (verdict == THEN_KILL || verdict == PREFIX) die();
}

/* A call that gives -1 on failure: fault, or the real one and then perhaps the end. */
#define AROUND(type, entering, calling)        \
    do {                                       \
        int verdict = (entering);              \
        if (verdict == FAIL) return (type)-1;  \
        type result = (calling);               \
        int kept = errno;                      \
        leave(verdict);                        \
        errno = kept;                          \
        return result;                         \
    } while (0)

#define ON_PATH(name, path) enter(name, AT_FDCWD, path, 0, NULL)
#define ON_FD(name, fd) enter(name, fd, NULL, 0, NULL)
#define CHANGES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & (O_CREAT | O_TRUNC)))
#define MODE(flags, last)                                          \
    mode_t mode = 0;                                               \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                       \
        va_list rest;                                              \
        va_start(rest, last);                                      \
        mode = va_arg(rest, mode_t);                               \
        va_end(rest);                                              \
    }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE(flags, flags)
    AROUND(int, CHANGES(flags) ? ON_PATH("open", path) : GO, real_open(path, flags, mode));
}
int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE(flags, flags)
    AROUND(int, CHANGES(flags) ? ON_PATH("open", path) : GO, real_open64(path, flags, mode));
}
int openat(int dir, const char *path, int flags, ...) {
    REAL(openat);
    MODE(flags, flags)
    AROUND(int, CHANGES(flags) ? enter("open", dir, path, 0, NULL) : GO,
           real_openat(dir, path, flags, mode));
}
int openat64(int dir, const char *path, int flags, ...) {
    REAL(openat64);
    MODE(flags, flags)
    AROUND(int, CHANGES(flags) ? enter("open", dir, path, 0, NULL) : GO,
           real_openat64(dir, path, flags, mode));
}
int creat(const char *path, mode_t mode) {
    REAL(creat);
    AROUND(int, ON_PATH("creat", path), real_creat(path, mode));
}
int creat64(const char *path, mode_t mode) {
    REAL(creat64);
    AROUND(int, ON_PATH("creat", path), real_creat64(path, mode));
}
FILE *fopen(const char *path, const char *how) {
    REAL(fopen);
    int verdict = strpbrk(how, "wa+") ? ON_PATH("fopen", path) : GO;
    if (verdict == FAIL) return NULL;
    FILE *result = real_fopen(path, how);
    leave(verdict);
    return result;
}
FILE *fopen64(const char *path, const char *how) {
    REAL(fopen64);
    int verdict = strpbrk(how, "wa+") ? ON_PATH("fopen", path) : GO;
    if (verdict == FAIL) return NULL;
    FILE *result = real_fopen64(path, how);
    leave(verdict);
    return result;
}

/* Half of what was to be written, where the fault is a short write (PREFIX: and then the end). */
static int halved(int verdict) { return verdict == PREFIX || verdict == LESS; }
static size_t part(int verdict, size_t n) { return halved(verdict) && n > 1 ? n / 2 : n; }

ssize_t write(int fd, const void *data, size_t n) {
    REAL(write);
    int verdict = ON_FD("write", fd);
    if (verdict == FAIL) return -1;
    ssize_t result = real_write(fd, data, part(verdict, n));
    leave(verdict);
    return result;
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t where) {
    REAL(pwrite);
    int verdict = ON_FD("pwrite", fd);
    if (verdict == FAIL) return -1;
    ssize_t result = real_pwrite(fd, data, part(verdict, n), where);
    leave(verdict);
    return result;
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t where) {
    REAL(pwrite64);
    int verdict = ON_FD("pwrite", fd);
    if (verdict == FAIL) return -1;
    ssize_t result = real_pwrite64(fd, data, part(verdict, n), where);
    leave(verdict);
    return result;
}
/* Of several pieces a short write takes the first pieces and half of the next. */
static ssize_t half_of(int fd, const struct iovec *pieces, int count) {
    size_t all = 0;
    for (int i = 0; i < count; i++) all += pieces[i].iov_len;
    size_t left = all / 2;
    for (int i = 0; i < count && left; i++) {
        size_t take = pieces[i].iov_len < left ? pieces[i].iov_len : left;
        long done = syscall(SYS_write, fd, pieces[i].iov_base, take);
        if (done < 0) return -1;
        left -= (size_t)done;
        if ((size_t)done < take) break;
    }
    return (ssize_t)(all / 2 - left);
}
ssize_t writev(int fd, const struct iovec *pieces, int count) {
    REAL(writev);
    int verdict = ON_FD("writev", fd);
    if (verdict == FAIL) return -1;
    ssize_t result =
        halved(verdict) ? half_of(fd, pieces, count) : real_writev(fd, pieces, count);
    leave(verdict);
    return result;
}
ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t where) {
    REAL(pwritev);
    AROUND(ssize_t, ON_FD("pwritev", fd), real_pwritev(fd, pieces, count, where));
}
ssize_t pwritev64(int fd, const struct iovec *pieces, int count, off64_t where) {
    REAL(pwritev64);
    AROUND(ssize_t, ON_FD("pwritev", fd), real_pwritev64(fd, pieces, count, where));
}
ssize_t pwritev2(int fd, const struct iovec *pieces, int count, off_t where, int flags) {
    REAL(pwritev2);
    AROUND(ssize_t, ON_FD("pwritev", fd), real_pwritev2(fd, pieces, count, where, flags));
}
ssize_t pwritev64v2(int fd, const struct iovec *pieces, int count, off64_t where, int flags) {
    REAL(pwritev64v2);
    AROUND(ssize_t, ON_FD("pwritev", fd), real_pwritev64v2(fd, pieces, count, where, flags));
}
ssize_t copy_file_range(int in, off64_t *a, int out, off64_t *b, size_t n, unsigned flags) {
    REAL(copy_file_range);
    AROUND(ssize_t, ON_FD("copy_file_range", out), real_copy_file_range(in, a, out, b, n, flags));
}
extern ssize_t sendfile(int, int, off_t *, size_t);
ssize_t sendfile(int out, int in, off_t *where, size_t n) {
    REAL(sendfile);
    AROUND(ssize_t, ON_FD("sendfile", out), real_sendfile(out, in, where, n));
}
extern ssize_t sendfile64(int, int, off64_t *, size_t);
ssize_t sendfile64(int out, int in, off64_t *where, size_t n) {
    REAL(sendfile64);
    AROUND(ssize_t, ON_FD("sendfile", out), real_sendfile64(out, in, where, n));
}
int posix_fallocate(int fd, off_t where, off_t n) {
    REAL(posix_fallocate);
    int verdict = ON_FD("posix_fallocate", fd);
    if (verdict == FAIL) return (int)fault_arg;
    int result = real_posix_fallocate(fd, where, n);
    leave(verdict);
    return result;
}
int posix_fallocate64(int fd, off64_t where, off64_t n) {
    REAL(posix_fallocate64);
    int verdict = ON_FD("posix_fallocate", fd);
    if (verdict == FAIL) return (int)fault_arg;
    int result = real_posix_fallocate64(fd, where, n);
    leave(verdict);
    return result;
}

#define PAIR(name, a, one, b, two) enter(name, a, one, b, two)

int rename(const char *from, const char *to) {
    REAL(rename);
    AROUND(int, PAIR("rename", AT_FDCWD, from, AT_FDCWD, to), real_rename(from, to));
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat);
    AROUND(int, PAIR("rename", a, from, b, to), real_renameat(a, from, b, to));
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    REAL(renameat2);
    AROUND(int, PAIR("rename", a, from, b, to), real_renameat2(a, from, b, to, flags));
}
int link(const char *from, const char *to) {
    REAL(link);
    AROUND(int, PAIR("link", AT_FDCWD, from, AT_FDCWD, to), real_link(from, to));
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(linkat);
    AROUND(int, PAIR("link", a, from, b, to), real_linkat(a, from, b, to, flags));
}
int symlink(const char *text, const char *path) {
    REAL(symlink);
    AROUND(int, ON_PATH("symlink", path), real_symlink(text, path));
}
int symlinkat(const char *text, int dir, const char *path) {
    REAL(symlinkat);
    AROUND(int, enter("symlink", dir, path, 0, NULL), real_symlinkat(text, dir, path));
}
int unlink(const char *path) {
    REAL(unlink);
    AROUND(int, ON_PATH("unlink", path), real_unlink(path));
}
int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat);
    AROUND(int, enter(flags & AT_REMOVEDIR ? "rmdir" : "unlink", dir, path, 0, NULL),
           real_unlinkat(dir, path, flags));
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    AROUND(int, ON_PATH("mkdir", path), real_mkdir(path, mode));
}
int mkdirat(int dir, const char *path, mode_t mode) {
    REAL(mkdirat);
    AROUND(int, enter("mkdir", dir, path, 0, NULL), real_mkdirat(dir, path, mode));
}
int rmdir(const char *path) {
    REAL(rmdir);
    AROUND(int, ON_PATH("rmdir", path), real_rmdir(path));
}
int mknod(const char *path, mode_t mode, dev_t device) {
    REAL(mknod);
    AROUND(int, ON_PATH("mknod", path), real_mknod(path, mode, device));
}
int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    AROUND(int, ON_FD("ftruncate", fd), real_ftruncate(fd, size));
}
int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    AROUND(int, ON_FD("ftruncate", fd), real_ftruncate64(fd, size));
}
int truncate(const char *path, off_t size) {
    REAL(truncate);
    AROUND(int, ON_PATH("truncate", path), real_truncate(path, size));
}
int truncate64(const char *path, off64_t size) {
    REAL(truncate64);
    AROUND(int, ON_PATH("truncate", path), real_truncate64(path, size));
}
int fsync(int fd) {
    REAL(fsync);
    AROUND(int, ON_FD("fsync", fd), real_fsync(fd));
}
int fdatasync(int fd) {
    REAL(fdatasync);
    AROUND(int, ON_FD("fdatasync", fd), real_fdatasync(fd));
}
int chmod(const char *path, mode_t mode) {
    REAL(chmod);
    AROUND(int, ON_PATH("chmod", path), real_chmod(path, mode));
}
int fchmod(int fd, mode_t mode) {
    REAL(fchmod);
    AROUND(int, ON_FD("fchmod", fd), real_fchmod(fd, mode));
}
int fchmodat(int dir, const char *path, mode_t mode, int flags) {
    REAL(fchmodat);
    AROUND(int, enter("chmod", dir, path, 0, NULL), real_fchmodat(dir, path, mode, flags));
}
int utimensat(int dir, const char *path, const struct timespec times[2], int flags) {
    REAL(utimensat);
    AROUND(int, enter("utimensat", dir, path, 0, NULL), real_utimensat(dir, path, times, flags));
}
int futimens(int fd, const struct timespec times[2]) {
    REAL(futimens);
    AROUND(int, ON_FD("utimensat", fd), real_futimens(fd, times));
}
int flock(int fd, int operation) {
    REAL(flock);
    int verdict = ON_FD("flock", fd);
    if (verdict == FAIL) return -1;
    int result = armed && fault_kind == NOLOCK && verdict != GO ? 0 : real_flock(fd, operation);
    leave(verdict);
    return result;
}
int lockf64(int fd, int operation, off64_t n) {
    REAL(lockf64);
    int verdict = ON_FD("lockf", fd);
    if (verdict == FAIL) return -1;
    int result = armed && fault_kind == NOLOCK && verdict != GO ? 0 : real_lockf64(fd, operation, n);
    leave(verdict);
    return result;
}

static int is_lock(int operation) {
    return operation == F_SETLK || operation == F_SETLKW || operation == F_OFD_SETLK ||
           operation == F_OFD_SETLKW;
}
int fcntl64(int fd, int operation, ...) {
    REAL(fcntl64);
    va_list rest;
    va_start(rest, operation);
    void *value = va_arg(rest, void *);
    va_end(rest);
    int verdict = is_lock(operation) ? ON_FD("fcntl", fd) : GO;
    if (verdict == FAIL) return -1;
    int skip = armed && fault_kind == NOLOCK && verdict != GO;
    int result = skip ? 0 : real_fcntl64(fd, operation, value);
    leave(verdict);
    return result;
}
int fcntl(int fd, int operation, ...) {
    va_list rest;
    va_start(rest, operation);
    void *value = va_arg(rest, void *);
    va_end(rest);
    return fcntl64(fd, operation, value);
}

/* A clock that was set back and keeps falling: each reading is that much earlier again. */
static time_t behind(void) {
    if (!armed || fault_kind != CLOCK) return 0;
    return (time_t)(fault_arg * (atomic_fetch_add(&clock_calls, 1) + 1));
}
int clock_gettime(clockid_t which, struct timespec *now) {
    REAL(clock_gettime);
    int result = real_clock_gettime(which, now);
    if (!result && which == CLOCK_REALTIME) now->tv_sec -= behind();
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(gettimeofday);
    int result = real_gettimeofday(now, zone);
    if (!result) now->tv_sec -= behind();
    return result;
}
time_t time(time_t *out) {
    REAL(time);
    time_t now = real_time(NULL) - behind();
    if (out) *out = now;
    return now;
}
