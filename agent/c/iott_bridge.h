/* iott_bridge joins the streams of an iott client with services on POSIX sockets: what a
 * program does that relays, and an example for one that answers by itself. */
#ifndef IOTT_BRIDGE_H
#define IOTT_BRIDGE_H

#include <poll.h>
#include <sys/socket.h>

#include "iott.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Streams beyond these are refused. */
#ifndef IOTT_BRIDGE_STREAMS
#define IOTT_BRIDGE_STREAMS 32
#endif

struct iott_target { /* where a port of the device leads */
	uint16_t port;
	struct sockaddr_storage addr;
	socklen_t addr_len;
};

struct iott_bridge {
	struct iott *client;
	const struct iott_target *targets;
	unsigned ntargets;
	struct iott_bridged {
		int fd; /* -1: none */
		unsigned char connecting, ended, full, blocked, finished;
		uint32_t since;
	} streams[IOTT_BRIDGE_STREAMS];
	uint32_t now;
	unsigned next; /* the stream behind the last that wrote: the first in the next poll */
};

/* iott_bridge_init makes cfg's callbacks of streams those of b, and cfg->user b. */
void iott_bridge_init(struct iott_bridge *b, struct iott *client, struct iott_config *cfg, const struct iott_target *targets, unsigned ntargets);

/* iott_bridge_fds is as iott_posix_fds. */
int iott_bridge_fds(struct iott_bridge *b, struct pollfd *fds, int most);

/* iott_bridge_poll passes on what services have sent. It is called before iott_poll, with
 * the same clock. */
void iott_bridge_poll(struct iott_bridge *b, uint32_t now_ms);

#ifdef __cplusplus
}
#endif

#endif
