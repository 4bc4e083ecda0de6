#define _POSIX_C_SOURCE 200809L
#include "iott_posix.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifdef ESP_PLATFORM
#include <esp_random.h>
#endif

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

/* Milliseconds for which addresses are kept, and for which one of several is tried; and the
 * bytes that the kernel may hold unsent ahead of an answer to a ping. */
enum { ADDRESS_TIME = 60000, TRY_TIME = 3000, UNSENT_MOST = 16384 };

uint32_t iott_posix_now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint32_t)((uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000);
}

static int look_up(struct iott_posix *p, const char *host, uint16_t port) {
	struct addrinfo hints, *list = NULL, *a;
	char service[6];
	if (p->naddrs > 0 && p->port == port && strcmp(p->host, host) == 0 && iott_posix_now() - p->looked_up < ADDRESS_TIME)
		return 0;
	memset(&hints, 0, sizeof hints);
	hints.ai_socktype = SOCK_STREAM;
	snprintf(service, sizeof service, "%u", (unsigned)port);
	if (strlen(host) >= sizeof p->host || getaddrinfo(host, service, &hints, &list) != 0)
		return IOTT_FAILED;
	p->naddrs = p->first = 0;
	for (a = list; a != NULL && p->naddrs < IOTT_POSIX_ADDRESSES; a = a->ai_next) {
		if (a->ai_addrlen > sizeof p->addrs[0].addr)
			continue;
		memcpy(&p->addrs[p->naddrs].addr, a->ai_addr, a->ai_addrlen);
		p->addrs[p->naddrs++].len = a->ai_addrlen;
	}
	freeaddrinfo(list);
	strcpy(p->host, host);
	p->port = port;
	p->looked_up = iott_posix_now();
	p->list++;
	return p->naddrs > 0 ? 0 : IOTT_FAILED;
}

/* begin connects to s->at. */
static int begin(struct iott_posix *p, struct iott_posix_socket *s) {
	int on = 1;
	s->since = iott_posix_now();
	s->fd = socket(p->addrs[s->at].addr.ss_family, SOCK_STREAM, 0);
	if (s->fd < 0)
		return IOTT_FAILED;
	fcntl(s->fd, F_SETFD, FD_CLOEXEC);
	fcntl(s->fd, F_SETFL, O_NONBLOCK);
	setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
#ifdef TCP_NOTSENT_LOWAT
	on = UNSENT_MOST;
	setsockopt(s->fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &on, sizeof on);
#endif
	if (connect(s->fd, (struct sockaddr *)&p->addrs[s->at].addr, p->addrs[s->at].len) == 0 || errno == EINPROGRESS)
		return 0;
	close(s->fd);
	s->fd = -1;
	return IOTT_FAILED;
}

/* go_on connects to the next address; IOTT_FAILED after the last. */
static int go_on(struct iott_posix *p, struct iott_posix_socket *s) {
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
	while (s->untried > 0 && s->list == p->list) {
		s->untried--;
		s->at = (unsigned char)((s->at + 1) % p->naddrs);
		if (begin(p, s) == 0)
			return 0;
	}
	if (s->list == p->list)
		p->naddrs = 0; /* another look-up the next time */
	return IOTT_FAILED;
}

static int open_socket(void *ctx, const char *host, uint16_t port, int tls) {
	struct iott_posix *p = ctx;
	struct iott_posix_socket *s = p->sockets;
	if (tls) /* that is iott_mbedtls's */
		return IOTT_FAILED;
	while (s < p->sockets + IOTT_POSIX_SOCKETS && s->used)
		s++;
	if (s == p->sockets + IOTT_POSIX_SOCKETS || look_up(p, host, port) < 0)
		return IOTT_FAILED;
	memset(s, 0, sizeof *s);
	s->connecting = 1;
	s->list = p->list;
	s->at = p->first;
	s->untried = (unsigned char)(p->naddrs - 1);
	if (begin(p, s) < 0 && go_on(p, s) < 0)
		return IOTT_FAILED;
	s->used = 1;
	return (int)(s - p->sockets);
}

static int ready(void *ctx, int sock) {
	struct iott_posix *p = ctx;
	struct iott_posix_socket *s = &p->sockets[sock];
	struct pollfd fd;
	int err = 0;
	socklen_t len = sizeof err;
	if (!s->connecting)
		return 1;
	if (s->fd < 0)
		return IOTT_FAILED;
	fd.fd = s->fd;
	fd.events = POLLOUT;
	if (poll(&fd, 1, 0) != 1) {
		if (s->untried == 0 || iott_posix_now() - s->since < TRY_TIME)
			return 0;
		return go_on(p, s);
	}
	if (getsockopt(fd.fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0 || err != 0)
		return go_on(p, s);
	s->connecting = 0;
	if (s->list == p->list)
		p->first = s->at;
	return 1;
}

static int later(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

static long send_some(void *ctx, int sock, const void *b, size_t n) {
	struct iott_posix *p = ctx;
	long sent = send(p->sockets[sock].fd, b, n, MSG_NOSIGNAL);
	if (sent >= 0)
		return sent;
	p->sockets[sock].full = 1;
	return later() ? IOTT_AGAIN : IOTT_FAILED;
}

static long recv_some(void *ctx, int sock, void *b, size_t n) {
	struct iott_posix *p = ctx;
	long got;
	p->sockets[sock].asked = 1;
	got = recv(p->sockets[sock].fd, b, n, 0);
	if (got > 0)
		return got;
	return got == 0 ? IOTT_EOF : later() ? IOTT_AGAIN : IOTT_FAILED;
}

static void close_socket(void *ctx, int sock, int reset) {
	struct iott_posix *p = ctx;
	struct linger now = {1, 0};
	p->sockets[sock].used = 0;
	if (p->sockets[sock].fd < 0) /* none of the addresses was any good */
		return;
	if (reset)
		setsockopt(p->sockets[sock].fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
	close(p->sockets[sock].fd);
	p->sockets[sock].fd = -1;
}

#ifdef ESP_PLATFORM /* while Wi-Fi or Bluetooth is on, these are true ones */
static void random_bytes(void *ctx, void *b, size_t n) {
	(void)ctx;
	esp_fill_random(b, n);
}
#else
/* Without random bytes nothing is safe, and nothing else can be done about it. */
static void random_bytes(void *ctx, void *b, size_t n) {
	static int fd = -1;
	uint8_t *p = b;
	(void)ctx;
	if (fd < 0 && (fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC)) < 0)
		abort();
	while (n > 0) {
		long got = read(fd, p, n);
		if (got <= 0 && errno != EINTR)
			abort();
		if (got > 0)
			p += got, n -= (size_t)got;
	}
}
#endif

void iott_posix_net(struct iott_net *net, struct iott_posix *p) {
	int i;
	memset(p, 0, sizeof *p);
	for (i = 0; i < IOTT_POSIX_SOCKETS; i++)
		p->sockets[i].fd = -1;
	net->ctx = p;
	net->open = open_socket;
	net->ready = ready;
	net->send = send_some;
	net->recv = recv_some;
	net->close = close_socket;
	net->random = random_bytes;
}

int iott_posix_fds(struct iott_posix *p, struct pollfd *fds, int most) {
	int i, n = 0;
	for (i = 0; i < IOTT_POSIX_SOCKETS && n < most; i++) {
		short events = 0;
		if (p->sockets[i].fd < 0)
			continue;
		/* A socket that was not read is not waited for: its service has not taken what came. */
		if (p->sockets[i].asked)
			events |= POLLIN;
		if (p->sockets[i].connecting || p->sockets[i].full)
			events |= POLLOUT;
		p->sockets[i].asked = p->sockets[i].full = 0;
		if (events == 0)
			continue;
		fds[n].fd = p->sockets[i].fd;
		fds[n].events = events;
		fds[n++].revents = 0;
	}
	return n;
}
