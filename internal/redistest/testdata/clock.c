/* Preloaded into redis-server: the time of day runs ahead by as many nanoseconds as stand
 * in the file that REDISTEST_CLOCK names, in the machine's byte order; the monotonic clock
 * stays. libfaketime does the same, but its allocations never end with jemalloc's. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t *ahead; /* NULL until attached */

__attribute__((constructor)) static void attach(void) {
	const char *path = getenv("REDISTEST_CLOCK");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *p = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		static const char why[] = "clock.c: no clock at REDISTEST_CLOCK\n";
		ssize_t ignored = write(2, why, sizeof why - 1);
		(void)ignored;
		_exit(1);
	}
	close(fd);
	ahead = p;
}

int clock_gettime(clockid_t id, struct timespec *ts) {
	int err = (int)syscall(SYS_clock_gettime, id, ts);
	if (err == 0 && ahead && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
		int64_t ns = ts->tv_nsec + __atomic_load_n(ahead, __ATOMIC_RELAXED);
		ts->tv_sec += ns / 1000000000;
		ts->tv_nsec = ns % 1000000000;
	}
	return err;
}

int gettimeofday(struct timeval *restrict tv, void *restrict tz) {
	struct timespec ts;
	(void)tz;
	if (clock_gettime(CLOCK_REALTIME, &ts) != 0)
		return -1;
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *t) {
	struct timespec ts;
	if (clock_gettime(CLOCK_REALTIME, &ts) != 0)
		return (time_t)-1;
	if (t)
		*t = ts.tv_sec;
	return ts.tv_sec;
}
