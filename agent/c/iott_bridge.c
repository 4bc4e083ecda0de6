#define _POSIX_C_SOURCE 200809L
#include "iott_bridge.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

enum { CONNECT_TIME = 10000, CHUNK = 2048, ROUNDS = 8 };

static int later(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

static void hang_up(struct iott_bridged *s, int reset) {
	struct linger now = {1, 0};
	if (s->fd < 0)
		return;
	if (reset)
		setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
	close(s->fd);
	s->fd = -1;
}

static int on_open(void *user, int stream, uint16_t port, const char *from) {
	struct iott_bridge *b = user;
	struct iott_bridged *s;
	const struct iott_target *t = b->targets, *end = t + b->ntargets;
	int on = 1;
	(void)from;
	while (t < end && t->port != port)
		t++;
	if (t == end || stream >= IOTT_BRIDGE_STREAMS)
		return -1;
	s = &b->streams[stream];
	memset(s, 0, sizeof *s);
	s->since = b->now;
	s->fd = socket(t->addr.ss_family, SOCK_STREAM, 0);
	if (s->fd < 0)
		return -1;
	fcntl(s->fd, F_SETFD, FD_CLOEXEC);
	fcntl(s->fd, F_SETFL, O_NONBLOCK);
	setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	s->connecting = 1;
	if (connect(s->fd, (const struct sockaddr *)&t->addr, t->addr_len) < 0 && errno != EINPROGRESS) {
		hang_up(s, 0);
		iott_refuse(b->client, stream, "connection refused");
	}
	return 0;
}

static size_t on_data(void *user, int stream, const uint8_t *p, size_t n) {
	struct iott_bridge *b = user;
	struct iott_bridged *s = &b->streams[stream];
	long sent;
	if (s->fd < 0)
		return n;
	if (s->connecting)
		return 0;
	sent = send(s->fd, p, n, MSG_NOSIGNAL);
	if (sent >= 0)
		return (size_t)sent;
	if (later()) {
		s->full = 1;
		return 0;
	}
	hang_up(s, 1);
	iott_abort(b->client, stream);
	return n;
}

static void on_end(void *user, int stream) {
	struct iott_bridge *b = user;
	struct iott_bridged *s = &b->streams[stream];
	s->ended = 1;
	if (s->fd >= 0 && !s->connecting)
		shutdown(s->fd, SHUT_WR);
}

static void on_abort(void *user, int stream) { hang_up(&((struct iott_bridge *)user)->streams[stream], 1); }

static void on_over(void *user, int stream) { hang_up(&((struct iott_bridge *)user)->streams[stream], 0); }

static void on_writable(void *user, int stream) { ((struct iott_bridge *)user)->streams[stream].blocked = 0; }

void iott_bridge_init(struct iott_bridge *b, struct iott *client, struct iott_config *cfg, const struct iott_target *targets, unsigned ntargets) {
	int i;
	memset(b, 0, sizeof *b);
	b->client = client;
	b->targets = targets;
	b->ntargets = ntargets;
	for (i = 0; i < IOTT_BRIDGE_STREAMS; i++)
		b->streams[i].fd = -1;
	cfg->user = b;
	cfg->on_open = on_open;
	cfg->on_data = on_data;
	cfg->on_end = on_end;
	cfg->on_abort = on_abort;
	cfg->on_over = on_over;
	cfg->on_writable = on_writable;
}

int iott_bridge_fds(struct iott_bridge *b, struct pollfd *fds, int most) {
	int i, n = 0;
	for (i = 0; i < IOTT_BRIDGE_STREAMS && n < most; i++) {
		struct iott_bridged *s = &b->streams[i];
		short events = 0;
		if (s->fd < 0)
			continue;
		if (s->connecting || s->full)
			events |= POLLOUT;
		if (!s->connecting && !s->finished && !s->blocked)
			events |= POLLIN;
		s->full = 0;
		if (events == 0)
			continue;
		fds[n].fd = s->fd;
		fds[n].events = events;
		fds[n++].revents = 0;
	}
	return n;
}

/* connected finishes a connect; 0 while it goes on or has failed. */
static int connected(struct iott_bridge *b, int stream) {
	struct iott_bridged *s = &b->streams[stream];
	struct pollfd fd;
	int err = 0;
	socklen_t len = sizeof err;
	fd.fd = s->fd;
	fd.events = POLLOUT;
	if (poll(&fd, 1, 0) == 1 && getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &len) == 0 && err == 0) {
		s->connecting = 0;
		if (s->ended)
			shutdown(s->fd, SHUT_WR);
		return 1;
	}
	if (err == 0 && b->now - s->since < CONNECT_TIME)
		return 0;
	hang_up(s, 0);
	iott_refuse(b->client, stream, err ? strerror(err) : "no answer in time");
	return 0;
}

/* relay passes on what the service of a stream has sent, as far as there is room. */
static void relay(struct iott_bridge *b, int stream) {
	struct iott_bridged *s = &b->streams[stream];
	uint8_t chunk[CHUNK];
	int round;
	for (round = 0; round < ROUNDS && s->fd >= 0 && !s->finished; round++) {
		size_t room = iott_writable(b->client, stream);
		long got;
		if (room == 0) {
			s->blocked = 1;
			iott_write(b->client, stream, chunk, 1); /* accepted: 0; on_writable is asked for */
			return;
		}
		got = recv(s->fd, chunk, room < sizeof chunk ? room : sizeof chunk, 0);
		if (got > 0) {
			iott_write(b->client, stream, chunk, (size_t)got);
			b->next = (unsigned)stream + 1;
		} else if (got == 0) {
			s->finished = 1;
			iott_finish(b->client, stream);
		} else {
			if (!later()) {
				hang_up(s, 0);
				iott_abort(b->client, stream);
			}
			return;
		}
	}
}

void iott_bridge_poll(struct iott_bridge *b, uint32_t now_ms) {
	unsigned i, first = b->next;
	b->now = now_ms;
	for (i = 0; i < IOTT_BRIDGE_STREAMS; i++) {
		int stream = (int)((first + i) % IOTT_BRIDGE_STREAMS);
		struct iott_bridged *s = &b->streams[stream];
		if (s->fd >= 0 && (!s->connecting || connected(b, stream)))
			relay(b, stream);
	}
}
