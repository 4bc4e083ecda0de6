#include "iott_lwip.h"

#include <string.h>

#include <lwip/dns.h>

/* States of a socket. */
enum { FREE, RESOLVING, CONNECTING, CONNECTED, BROKEN };

static err_t on_connected(void *arg, struct tcp_pcb *pcb, err_t err) {
	struct iott_lwip_socket *s = arg;
	(void)pcb;
	s->state = err == ERR_OK ? CONNECTED : BROKEN;
	return ERR_OK;
}

static err_t on_recv(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t err) {
	struct iott_lwip_socket *s = arg;
	(void)pcb, (void)err;
	if (p == NULL)
		s->ended = 1;
	else if (s->in == NULL)
		s->in = p;
	else if (s->in->tot_len > 0xffff - p->tot_len)
		return ERR_MEM; /* a chain is no longer: lwIP offers it again */
	else
		pbuf_cat(s->in, p);
	return ERR_OK;
}

static void on_err(void *arg, err_t err) { /* lwIP has let go of the pcb */
	struct iott_lwip_socket *s = arg;
	(void)err;
	s->pcb = NULL;
	s->state = BROKEN;
}

static void connect_to(struct iott_lwip_socket *s, const ip_addr_t *addr) {
	s->pcb = tcp_new_ip_type(IP_GET_TYPE(addr));
	s->state = BROKEN;
	if (s->pcb == NULL)
		return;
	tcp_arg(s->pcb, s);
	tcp_recv(s->pcb, on_recv);
	tcp_err(s->pcb, on_err);
	tcp_nagle_disable(s->pcb);
	if (tcp_connect(s->pcb, addr, s->port, on_connected) == ERR_OK)
		s->state = CONNECTING;
}

#if LWIP_DNS
static void on_found(const char *name, const ip_addr_t *addr, void *arg) {
	struct iott_lwip_socket *s = arg;
	(void)name;
	if (s->closed)
		memset(s, 0, sizeof *s);
	else if (addr == NULL)
		s->state = BROKEN;
	else
		connect_to(s, addr);
}

static err_t look_up(const char *host, ip_addr_t *addr, struct iott_lwip_socket *s) {
	return dns_gethostbyname(host, addr, on_found, s);
}
#else /* addresses only */
static err_t look_up(const char *host, ip_addr_t *addr, struct iott_lwip_socket *s) {
	(void)s;
	return ipaddr_aton(host, addr) ? ERR_OK : ERR_ARG;
}
#endif

static int open_socket(void *ctx, const char *host, uint16_t port, int tls) {
	struct iott_lwip *l = ctx;
	struct iott_lwip_socket *s = l->sockets;
	ip_addr_t addr;
	err_t err;
	if (tls) /* that is iott_mbedtls's */
		return IOTT_FAILED;
	while (s < l->sockets + IOTT_LWIP_SOCKETS && s->state != FREE)
		s++;
	if (s == l->sockets + IOTT_LWIP_SOCKETS)
		return IOTT_FAILED;
	memset(s, 0, sizeof *s);
	s->port = port;
	s->state = RESOLVING;
	err = look_up(host, &addr, s);
	if (err == ERR_OK) {
		connect_to(s, &addr);
	} else if (err != ERR_INPROGRESS) {
		s->state = FREE;
		return IOTT_FAILED;
	}
	return (int)(s - l->sockets);
}

static int ready(void *ctx, int sock) {
	struct iott_lwip *l = ctx;
	uint8_t state = l->sockets[sock].state;
	return state == CONNECTED ? 1 : state == BROKEN ? IOTT_FAILED : 0;
}

static long send_some(void *ctx, int sock, const void *p, size_t n) {
	struct iott_lwip *l = ctx;
	struct iott_lwip_socket *s = &l->sockets[sock];
	size_t room;
	err_t err;
	if (s->state != CONNECTED)
		return IOTT_FAILED;
	room = tcp_sndbuf(s->pcb);
	if (n > room)
		n = room;
	if (n > 0xffff)
		n = 0xffff;
	if (n == 0)
		return IOTT_AGAIN;
	err = tcp_write(s->pcb, p, (u16_t)n, TCP_WRITE_FLAG_COPY);
	if (err != ERR_OK)
		return err == ERR_MEM ? IOTT_AGAIN : IOTT_FAILED;
	tcp_output(s->pcb); /* what it cannot do now the timer does */
	return (long)n;
}

static long recv_some(void *ctx, int sock, void *p, size_t n) {
	struct iott_lwip *l = ctx;
	struct iott_lwip_socket *s = &l->sockets[sock];
	if (s->in == NULL)
		return s->state != CONNECTED ? IOTT_FAILED : s->ended ? IOTT_EOF : IOTT_AGAIN;
	if (n > s->in->tot_len)
		n = s->in->tot_len;
	pbuf_copy_partial(s->in, p, (u16_t)n, 0);
	s->in = pbuf_free_header(s->in, (u16_t)n);
	if (s->pcb != NULL)
		tcp_recved(s->pcb, (u16_t)n);
	return (long)n;
}

static void close_socket(void *ctx, int sock, int reset) {
	struct iott_lwip *l = ctx;
	struct iott_lwip_socket *s = &l->sockets[sock];
	struct tcp_pcb *pcb = s->pcb;
	if (s->state == RESOLVING) { /* on_found comes in any case */
		s->closed = 1;
		return;
	}
	if (pcb != NULL) {
		tcp_arg(pcb, NULL);
		tcp_recv(pcb, NULL);
		tcp_err(pcb, NULL);
		if (s->in != NULL && !reset)
			tcp_recved(pcb, s->in->tot_len); /* unread bytes would make it a reset */
		if (reset || tcp_close(pcb) != ERR_OK)
			tcp_abort(pcb);
	}
	if (s->in != NULL)
		pbuf_free(s->in);
	memset(s, 0, sizeof *s);
}

static void random_bytes(void *ctx, void *p, size_t n) { ((struct iott_lwip *)ctx)->random(p, n); }

void iott_lwip_net(struct iott_net *net, struct iott_lwip *l, void (*random)(void *p, size_t n)) {
	memset(l, 0, sizeof *l);
	l->random = random;
	net->ctx = l;
	net->open = open_socket;
	net->ready = ready;
	net->send = send_some;
	net->recv = recv_some;
	net->close = close_socket;
	net->random = random_bytes;
}
