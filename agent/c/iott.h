/*
 * iott makes a device with little memory reachable through an iottunnel edge:
 * the agent's side of docs/protocol.md in C99, without heap, threads or files.
 *
 * The program owns the loop. It calls iott_poll, waits for its sockets or for the
 * time that was returned, whichever is first, and calls again. Visitors arrive as
 * streams, in callbacks out of iott_poll. What the system has to do (connect, send,
 * receive, random bytes) stands in struct iott_net: iott_posix.c and iott_lwip.c are
 * such ports, and iott_mbedtls.c adds TLS to either.
 *
 * Nothing here is safe for concurrent use: one client, one thread.
 */
#ifndef IOTT_H
#define IOTT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Results of the port's send and recv, besides numbers of bytes. */
enum {
	IOTT_AGAIN = 0,   /* nothing now: come back later */
	IOTT_EOF = -1,    /* the peer has ended its direction */
	IOTT_FAILED = -2  /* the connection is broken */
};

/* iott_net is what the client asks of the system. No function may block. */
struct iott_net {
	void *ctx;
	/* open begins to connect to a host, a name or an address, with TLS if tls is not
	 * zero: certificate and name are then verified before ready says so. It returns a
	 * socket, 0 or more, or IOTT_FAILED. host lasts until the socket is ready. */
	int (*open)(void *ctx, const char *host, uint16_t port, int tls);
	/* ready is 1 once the socket may be used, 0 before, IOTT_FAILED if it never will. */
	int (*ready)(void *ctx, int sock);
	/* send and recv return the bytes that they moved, or one of the results above. */
	long (*send)(void *ctx, int sock, const void *p, size_t n);
	long (*recv)(void *ctx, int sock, void *p, size_t n);
	/* close lets go of a socket; if reset is not zero by a reset (SO_LINGER 0), so that
	 * nobody takes what was sent for all there was. */
	void (*close)(void *ctx, int sock, int reset);
	/* random fills p with bytes that nobody can guess. */
	void (*random)(void *ctx, void *p, size_t n);
};

/* iott_kind is how the edge treats visitors of a port (protocol 3.3). */
enum iott_kind { IOTT_DEFAULT, IOTT_HTTP, IOTT_HTTPS, IOTT_TCP };

/* iott_port is a port of the device, as visitors know it. */
struct iott_port {
	uint16_t number;
	enum iott_kind kind;
};

enum iott_profile {
	IOTT_BASIC, /* a second connection for each stream (protocol 6) */
	IOTT_INLINE /* one connection for all (protocol 12): less memory with TLS */
};

/* iott_ready tells what is in force. Its strings last until the callback returns. */
struct iott_ready {
	const char *label, *hostname;
	unsigned heartbeat_s, streams;
};

/* iott_end says why there is no tunnel (any more). */
struct iott_end {
	int status;       /* of HTTP: the edge, or somebody on the way, refused; else 0 */
	int code;         /* of the close frame; else 0 */
	uint32_t retry_ms; /* when the next attempt begins */
	const char *why;  /* for people */
};

/* iott_config is read by iott_init and has to live as long as the client. */
struct iott_config {
	const struct iott_net *net;
	/* servers are URLs of edges, `wss://edge.example.com` or `ws://10.0.0.1:8080`, which
	 * are tried in random order. ws sends the token in clear: it is refused unless
	 * allow_plaintext is not zero, or the host is `localhost` or begins with `127.`. */
	const char *const *servers;
	unsigned nservers; /* 1 to 32 */
	int allow_plaintext;
	const char *device, *token; /* token may be NULL where TLS has a client certificate */
	const struct iott_port *ports;
	unsigned nports;            /* 1 to 32 */
	enum iott_profile profile;
	unsigned streams;           /* at once; 1 to 32 */
	/* buffer is how many bytes are held per stream and direction: in the profile inline
	 * the window (protocol 12.1). 64 to 32768; 0 is 1024. */
	unsigned buffer;
	unsigned heartbeat_s;       /* asked for; 0 leaves it to the edge */
	uint32_t max_backoff_ms;    /* at most a day; 0 is 30 s */

	void *user; /* first argument of the callbacks */
	/* on_ready: the tunnel is up. May be NULL. */
	void (*on_ready)(void *user, const struct iott_ready *r);
	/* on_address: where visitors reach a port, a URL or HOST:PORT. May be NULL. */
	void (*on_address)(void *user, uint16_t port, const char *address);
	/* on_down: the tunnel has ended, or an attempt has failed. May be NULL. */
	void (*on_down)(void *user, const struct iott_end *end);
	/* on_open: a visitor at `from`, which proves nothing, wants a port. Not zero refuses.
	 * Numbers of streams are 0 to streams - 1; one is used again after its end. */
	int (*on_open)(void *user, int stream, uint16_t port, const char *from);
	/* on_data: bytes of the visitor. It returns how many were taken; the others come
	 * again with the next poll, and until then the visitor waits. */
	size_t (*on_data)(void *user, int stream, const uint8_t *p, size_t n);
	/* on_end: the visitor has sent everything. The other direction goes on. */
	void (*on_end)(void *user, int stream);
	/* on_abort: the stream is over, and something may be cut off. The program's other
	 * side must not take it for an end: reset it. Not called after iott_abort. */
	void (*on_abort)(void *user, int stream);
	/* on_over: both directions have ended. May be NULL. */
	void (*on_over)(void *user, int stream);
	/* on_writable: iott_write will take something again. May be NULL. */
	void (*on_writable)(void *user, int stream);
};

struct iott; /* below: so that a program can reserve its memory */

/* iott_memory is how many bytes iott_init wants with this configuration; 0 if it is
 * wrong. */
size_t iott_memory(const struct iott_config *cfg);

/* iott_init makes a client that has not connected yet. mem is memory of at least
 * iott_memory(cfg) bytes, aligned as malloc does it. It returns NULL, or what is wrong. */
const char *iott_init(struct iott *c, const struct iott_config *cfg, void *mem, size_t len);

/* iott_poll does what there is to do at a time, in milliseconds of any clock that never
 * goes back and may wrap around, and returns in how many milliseconds it has to be called
 * again; earlier if a socket has something, or if a callback has taken less than there
 * was. It comes back by itself from every failure. */
uint32_t iott_poll(struct iott *c, uint32_t now_ms);

/* iott_write sends bytes to the visitor, and returns how many were accepted: 0 when there
 * is no room now, or no such stream. */
size_t iott_write(struct iott *c, int stream, const void *p, size_t n);

/* iott_writable is how many bytes iott_write would accept. */
size_t iott_writable(const struct iott *c, int stream);

/* iott_finish ends the direction to the visitor, after what was written. */
void iott_finish(struct iott *c, int stream);

/* iott_abort ends a stream at once: its visitor sees a broken connection. */
void iott_abort(struct iott *c, int stream);

/* iott_refuse is iott_abort for a stream whose service did not answer: before the first
 * byte was written the visitor is told the reason, a text of at most 100 ASCII characters
 * without `"` and `\`, which has to live on until the stream is over. */
void iott_refuse(struct iott *c, int stream, const char *reason);

/* iott_stop says goodbye: visitors are told at once that the device is offline. The client
 * is over when iott_poll has returned IOTT_OVER. */
void iott_stop(struct iott *c);

#define IOTT_OVER UINT32_MAX

/* What follows belongs to iott.c. */

struct iott_socket { /* one WebSocket */
	int sock; /* of the port; -1: none */
	uint8_t state, opcode, message, head_len, pending, seen, part;
	uint8_t side_len; /* of line or ping */
	uint8_t pong_len;
	uint8_t empty, reading, sent_close, got_close, eof;
	uint16_t status, close_code, send_code, part_at; /* codes of close frames; where in the piece of the request */
	uint32_t since, heard, left, retry_s;
	uint8_t *rx, *tx;
	uint32_t rx_len, rx_cap, tx_len, tx_cap;
	uint8_t head[10];
	uint8_t side[126]; /* a line of the answer; later a ping's or a close frame's payload */
	uint8_t pong[125]; /* before the handshake's answer its key */
};

struct iott_stream {
	uint8_t state, in, out, pending;
	uint8_t wants, wrote; /* on_writable is due; a byte was sent */
	uint32_t number, since;
	char id[33];
	const char *reason;
	struct iott_socket *socket; /* its transfer socket; NULL in the profile inline */
	uint8_t *hold; /* ring of what the service has not taken: inline */
	uint32_t window, hold_at, hold_len, freed, credit, due;
};

struct iott_text { /* a message under way (protocol 4.3) */
	uint8_t state, escape, key_len, field, kind, large;
	uint16_t used, code, len;
	uint8_t kinds[22];    /* the last of all fields that are not known */
	uint32_t values[22]; /* numbers, and where in pool strings begin */
	uint32_t number;
	char key[16];
	char pool[1184];
};

struct iott {
	const struct iott_config *cfg;
	uint32_t now, retry_at, up_at, drain_at, pause, untried; /* untried: bits of servers */
	uint8_t state, more, greeted, begun, failures, breaches, stopping, draining, late, put_off;
	uint8_t turn, next; /* streams that are first with the room in control: to speak, and to write */
	uint32_t heartbeat_ms, window;
	char host[254], instance[33];
	uint16_t port;
	uint8_t tls;
	char *transfer, *secret; /* out of ready; NULL in the profile inline */
	struct iott_socket control;
	struct iott_stream *streams;
	struct iott_text text;
	uint8_t frame[9], frame_len; /* header of a frame, and the payload of credit */
	uint32_t frame_size, late_since;
};

#ifdef __cplusplus
}
#endif

#endif
