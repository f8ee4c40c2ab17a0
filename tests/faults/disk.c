/* A disk that fails, for the storage tests: loaded before the C library, it stands between a process and the files below one folder.

   Python, Arrow, Rust and torch all write through the functions below, so one file covers them all. Which fault is played is read from
   the environment at every call, so that a process forked from a running one can have another:

   DISK_ROOT     the folder; without it nothing is touched
   DISK_FAIL     "ERRNO:FIRST:COUNT": calls number FIRST to FIRST + COUNT - 1 fail, counted from 1 in this process; COUNT 0 is for ever
   DISK_CALLS    letters of the calls that count: c create, w write, s fsync, r rename, l link, u unlink, m mkdir; all where unset
   DISK_SHORT    a write takes no more than half of what it is given
   DISK_SLOW_US  every call waits so long first
   DISK_LIES     fsync says yes and does nothing (in the journal as well)
   DISK_READ     "flip:N" or "cut:N": the N-th read of a file below the folder gives a byte of other bits, or none
   DISK_JOURNAL  a folder: what was done, a line each, in "log", and the bytes of each file as they were flushed or named, in "NUMBER"
*/

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static __thread int inside;
static long calls, reads, snapshots;

static const char *root(void) {
    const char *held = getenv("DISK_ROOT");
    return held && *held ? held : NULL;
}

static int below(const char *path) {
    const char *held = root();
    size_t size = held ? strlen(held) : 0;
    return held && strncmp(path, held, size) == 0 && (path[size] == '/' || path[size] == 0);
}

/* The whole path of a name, or of an open file for a name of "". */
static int whole(int folder, const char *name, char *out) {
    char link[64], base[PATH_MAX];
    ssize_t size;
    if (!root() || inside) return 0;
    if (name[0] == '/') return snprintf(out, PATH_MAX, "%s", name) < PATH_MAX && below(out);
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    size = readlink(link, base, sizeof base - 1);
    if (size < 0) return 0;
    base[size] = 0;
    return snprintf(out, PATH_MAX, name[0] ? "%s/%s" : "%s", base, name) < PATH_MAX && below(out);
}

/* 0 where the call may go on; else errno is set. */
static int fault(char kind) {
    const char *which = getenv("DISK_CALLS"), *fail = getenv("DISK_FAIL"), *slow = getenv("DISK_SLOW_US");
    int number;
    long first, count, now;
    if (slow) usleep(atoi(slow));
    if (which && !strchr(which, kind)) return 0;
    now = __sync_add_and_fetch(&calls, 1);
    if (!fail || sscanf(fail, "%d:%ld:%ld", &number, &first, &count) != 3) return 0;
    if (now < first || (count && now >= first + count)) return 0;
    errno = number;
    return -1;
}

static long copy(const char *from, const char *journal) {
    char to[PATH_MAX], held[1 << 16];
    long number = ++snapshots;
    ssize_t size;
    int in = syscall(SYS_openat, AT_FDCWD, from, O_RDONLY), out;
    snprintf(to, sizeof to, "%s/%ld", journal, number);
    out = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (in < 0 || out < 0) return 0;
    while ((size = syscall(SYS_read, in, held, sizeof held)) > 0) syscall(SYS_write, out, held, size);
    close(in);
    close(out);
    return number;
}

/* A line of the journal; the bytes of the file at `kept` beside it. The caller holds the gate. */
static void note(const char *kind, const char *path, const char *other, const char *kept) {
    const char *journal = getenv("DISK_JOURNAL");
    char line[3 * PATH_MAX], name[PATH_MAX];
    struct stat status = {0};
    long number = 0;
    int file, size, before = errno;
    if (!journal) return;
    stat(kept ? kept : path, &status);
    if (kept && S_ISREG(status.st_mode)) number = copy(kept, journal);
    snprintf(name, sizeof name, "%s/log", journal);
    size = snprintf(line, sizeof line, "%s\t%s\t%s\t%lu\t%ld\n", kind, path, other ? other : "", (unsigned long)status.st_ino, number);
    file = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND, 0644);
    syscall(SYS_write, file, line, size);
    close(file);
    errno = before;
}

#define BEGIN inside = 1; pthread_mutex_lock(&gate)
#define END pthread_mutex_unlock(&gate); inside = 0

static void written(const char *path) {
    BEGIN;
    note("written", path, NULL, NULL);
    END;
}

static int open_any(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int there, file;
    if (!(flags & (O_CREAT | O_WRONLY | O_RDWR)) || !whole(folder, name, path))
        return syscall(SYS_openat, folder, name, flags, mode);
    there = access(path, F_OK) == 0;
    if (!there && fault('c')) return -1;
    BEGIN;
    file = syscall(SYS_openat, folder, name, flags, mode);
    if (file >= 0) note(there ? (flags & O_TRUNC ? "emptied" : "opened") : "created", path, NULL, NULL);
    END;
    return file;
}

#define OPENED(last) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, last); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *name, int flags, ...) { OPENED(flags) return open_any(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { OPENED(flags) return open_any(AT_FDCWD, name, flags | O_LARGEFILE, mode); }
int openat(int folder, const char *name, int flags, ...) { OPENED(flags) return open_any(folder, name, flags, mode); }
int openat64(int folder, const char *name, int flags, ...) { OPENED(flags) return open_any(folder, name, flags | O_LARGEFILE, mode); }

static int regular(int file, char *path) {
    struct stat status;
    return whole(file, "", path) && fstat(file, &status) == 0 && S_ISREG(status.st_mode);
}

static size_t taken(size_t size) { return getenv("DISK_SHORT") && size > 1 ? (size + 1) / 2 : size; }

ssize_t write(int file, const void *data, size_t size) {
    char path[PATH_MAX];
    if (!root() || inside || !regular(file, path)) return syscall(SYS_write, file, data, size);
    if (fault('w')) return -1;
    written(path);
    return syscall(SYS_write, file, data, taken(size));
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t place) {
    char path[PATH_MAX];
    if (!root() || inside || !regular(file, path)) return syscall(SYS_pwrite64, file, data, size, place);
    if (fault('w')) return -1;
    written(path);
    return syscall(SYS_pwrite64, file, data, taken(size), place);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t place) { return pwrite64(file, data, size, place); }

ssize_t writev(int file, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (!root() || inside || !regular(file, path) || count < 1) return syscall(SYS_writev, file, parts, count);
    if (fault('w')) return -1;
    written(path);
    return syscall(SYS_writev, file, parts, getenv("DISK_SHORT") ? 1 : count);
}

static ssize_t altered(char *data, ssize_t size) {
    const char *how = getenv("DISK_READ");
    long wanted;
    if (!how || size <= 0 || __sync_add_and_fetch(&reads, 1) != (wanted = atol(strchr(how, ':') + 1))) return size;
    if (how[0] == 'c') return size / 2;
    data[size / 2] ^= 0x10;
    return size;
}

ssize_t read(int file, void *data, size_t size) {
    char path[PATH_MAX];
    ssize_t held = syscall(SYS_read, file, data, size);
    return root() && !inside && getenv("DISK_READ") && regular(file, path) ? altered(data, held) : held;
}

ssize_t pread64(int file, void *data, size_t size, off64_t place) {
    char path[PATH_MAX];
    ssize_t held = syscall(SYS_pread64, file, data, size, place);
    return root() && !inside && getenv("DISK_READ") && regular(file, path) ? altered(data, held) : held;
}

ssize_t pread(int file, void *data, size_t size, off_t place) { return pread64(file, data, size, place); }

static int flush(int file, int number) {
    char path[PATH_MAX];
    struct stat status;
    int result;
    if (!root() || inside || !whole(file, "", path)) return syscall(number, file);
    if (fault('s')) return -1;
    if (getenv("DISK_LIES")) return 0;
    BEGIN;
    result = syscall(number, file);
    if (fstat(file, &status) == 0 && S_ISDIR(status.st_mode)) note("folder flushed", path, NULL, NULL);
    else note("flushed", path, NULL, path);
    END;
    return result;
}

int fsync(int file) { return flush(file, SYS_fsync); }
int fdatasync(int file) { return flush(file, SYS_fdatasync); }

static int rename_any(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    char path[PATH_MAX], other[PATH_MAX];
    int result;
    if (!whole(from_folder, from, path) || !whole(to_folder, to, other))
        return syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
    if (fault('r')) return -1;
    BEGIN;
    result = syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
    if (result == 0) note("renamed", path, other, other);
    END;
    return result;
}

int rename(const char *from, const char *to) { return rename_any(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return rename_any(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return rename_any(a, from, b, to, flags); }

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    char path[PATH_MAX], other[PATH_MAX];
    int result;
    if (!whole(from_folder, from, path) || !whole(to_folder, to, other))
        return syscall(SYS_linkat, from_folder, from, to_folder, to, flags);
    if (fault('l')) return -1;
    BEGIN;
    result = syscall(SYS_linkat, from_folder, from, to_folder, to, flags);
    if (result == 0) note("linked", path, other, other);
    END;
    return result;
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int symlinkat(const char *target, int folder, const char *name) {
    char path[PATH_MAX];
    int result;
    if (!whole(folder, name, path)) return syscall(SYS_symlinkat, target, folder, name);
    if (fault('c')) return -1;
    BEGIN;
    result = syscall(SYS_symlinkat, target, folder, name);
    if (result == 0) note("pointed", path, target, NULL);
    END;
    return result;
}

int symlink(const char *target, const char *name) { return symlinkat(target, AT_FDCWD, name); }

int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    int result;
    if (!whole(folder, name, path)) return syscall(SYS_unlinkat, folder, name, flags);
    if (fault('u')) return -1;
    BEGIN;
    result = syscall(SYS_unlinkat, folder, name, flags);
    if (result == 0) note(flags & AT_REMOVEDIR ? "folder removed" : "removed", path, NULL, NULL);
    END;
    return result;
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int remove(const char *name) { return unlink(name) == 0 ? 0 : errno == EISDIR ? rmdir(name) : -1; }

int mkdirat(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    int result;
    if (!whole(folder, name, path)) return syscall(SYS_mkdirat, folder, name, mode);
    if (fault('m')) return -1;
    BEGIN;
    result = syscall(SYS_mkdirat, folder, name, mode);
    if (result == 0) note("folder made", path, NULL, NULL);
    END;
    return result;
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
