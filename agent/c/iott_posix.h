/* iott_posix connects an iott client over the sockets of a POSIX system. Names are
 * looked up with getaddrinfo, which may block. The addresses of a name are tried one after
 * the other; they are kept for a minute, and the one that answered comes first, so that
 * transfer sockets go where the control socket went. */
#ifndef IOTT_POSIX_H
#define IOTT_POSIX_H

#include <poll.h>
#include <sys/socket.h>

#include "iott.h"

#ifdef __cplusplus
extern "C" {
#endif

#define IOTT_POSIX_ADDRESSES 8 /* of a name; others are not tried */

/* The control socket, 32 streams, and those that make way. A device has it smaller. */
#ifndef IOTT_POSIX_SOCKETS
#define IOTT_POSIX_SOCKETS 40
#endif

struct iott_posix {
	struct iott_posix_socket {
		int fd; /* -1: none */
		unsigned char used, connecting, asked, full;
		unsigned char at, untried; /* while connecting: the address, and how many come after it */
		unsigned list;             /* of which look-up they are */
		uint32_t since;            /* ms */
	} sockets[IOTT_POSIX_SOCKETS];
	char host[254];
	uint16_t port;
	unsigned list; /* counts look-ups */
	uint32_t looked_up; /* ms */
	unsigned char naddrs, first; /* first: the one that answered last */
	struct {
		struct sockaddr_storage addr;
		socklen_t len;
	} addrs[IOTT_POSIX_ADDRESSES];
};

/* iott_posix_net makes net use p. */
void iott_posix_net(struct iott_net *net, struct iott_posix *p);

/* iott_posix_fds fills in what a program has to poll(2) for before it calls iott_poll
 * again, at most `most` of them, and returns how many. */
int iott_posix_fds(struct iott_posix *p, struct pollfd *fds, int most);

/* iott_posix_now is a clock for iott_poll. */
uint32_t iott_posix_now(void);

#ifdef __cplusplus
}
#endif

#endif
