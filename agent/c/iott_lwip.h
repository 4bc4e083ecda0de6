/* iott_lwip is iott's port to lwIP 2.1 or later, through its raw API: it needs no
 * operating system (NO_SYS) and no socket API. With an operating system iott_poll is
 * called under LOCK_TCPIP_CORE, or in the thread of tcpip; without one, in the main loop.
 * In either case not out of a callback of lwIP's. */
#ifndef IOTT_LWIP_H
#define IOTT_LWIP_H

#include <lwip/ip_addr.h>
#include <lwip/pbuf.h>
#include <lwip/tcp.h>

#include "iott.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How many sockets there may be at once: the control socket, in the profile basic one for
 * each stream, and one for a name that is still being looked up after its socket is gone. */
#ifndef IOTT_LWIP_SOCKETS
#define IOTT_LWIP_SOCKETS 4
#endif

struct iott_lwip {
	struct iott_lwip_socket {
		struct tcp_pcb *pcb;
		struct pbuf *in; /* what was received and not read */
		uint16_t port;
		uint8_t state, ended, closed; /* closed: only the look-up keeps the place */
	} sockets[IOTT_LWIP_SOCKETS];
	void (*random)(void *p, size_t n);
};

/* iott_lwip_net makes net use l. random is the system's source of bytes that nobody can
 * guess: lwIP's LWIP_RAND is none. */
void iott_lwip_net(struct iott_net *net, struct iott_lwip *l, void (*random)(void *p, size_t n));

#ifdef __cplusplus
}
#endif

#endif
