/* The client itself; iott.h says what it is. Numbers such as 5.6 are rules of
 * docs/protocol.md. The parts, each of which stands on those before it:
 *
 *   Constants            times, sizes, and the states of sockets, streams and the client
 *   Small things         time, random numbers, bytes and words
 *   SHA-1 and base64     what proves that the other end speaks WebSocket
 *   What is sent         frames and requests into tx, and tx into the network
 *   Streams              their beginning, their ends, and what is held for the program
 *   Frames               9 and 12: what the control socket carries besides messages
 *   Messages             4: JSON, character by character, and what the edge says in it
 *   What is received     the network into rx, answers and WebSocket frames out of it
 *   A transfer socket    6: one for each stream in the profile basic
 *   Coming back          5.5 to 5.7: when, and to which edge
 *   The control socket   5: one poll of it
 *   What the program calls
 *
 * Bytes of visitors go recv, rx, frames, message_piece, and then on_data, or take_frame,
 * hold and offer, which calls on_data. Those of services go iott_write, frame, tx, flush, send.
 * A callback may call iott_write, iott_finish, iott_abort and iott_refuse, so that after each
 * of them a stream may be over, and its socket closed. */
#include "iott.h"

#include <string.h>

/* ---- Constants ---- */

/* Times in milliseconds. */
enum {
	DIAL_TIME = 20000,   /* to connect, TLS included */
	ANSWER_TIME = 20000, /* until the edge's answer (2.5) */
	READY_TIME = 30000,  /* until `ready` (4.1) */
	GRACE_TIME = 10000,  /* of the watchdog (5.2), and of closing (6.6) */
	FIRST_RETRY = 500,   /* 5.6 */
	HELD_TIME = 30000,   /* a tunnel that lasted sets the backoff back (5.6) */
	SLOW_MIN = 300000,   /* slowly: 5 to 15 minutes (5.6) */
	SLOW_SPAN = 600000,
	RETRY_MOST = 600000, /* of Retry-After (5.6) */
	CROWD = 30, /* up to which Retry-After in seconds no other edge is asked (5.7) */
	LATE_TIME = 2000, /* how long an open waits for a stream that is about to end */
	GOODBYE_TIME = 2000, /* for the answer to our close frame (5.3) */
	HALF_TIME = 300000, /* without a byte in a stream half of which has ended (6.8) */
	TICK = 1000,      /* the longest pause between two looks at streams */
	SOON = 20         /* where something waits for the program */
};

/* Sizes in bytes, and numbers. */
enum {
	FRAME_MAX = 4101,  /* 9.1 */
	TEXT_MAX = 4096,   /* 4.3 */
	TX_RESERVE = 192,  /* room in tx that data leaves to pongs, refusals and ends */
	RX_CONTROL = 256,  /* what comes is taken apart as it comes: more only saves calls of recv */
	RX_STREAM = 512,
	TX_MIN = 512,      /* of data on the control socket */
	KEY_LEN = 16,      /* of a handshake */
	TRANSFER_MOST = 512, SECRET_MOST = 128, /* 8.1 */
	REASON_MOST = 100, /* of refused */
	ROUNDS = 8,        /* reads of one socket per poll */
	BREACHES = 8       /* violations until the tunnel is closed (10.9) */
};

/* Kinds of frames (9.2). */
enum { DATA = 1, FIN, RESET, MOVE, CREDIT };

/* Opcodes of WebSocket (RFC 6455 §5.2). */
enum { OP_CONT = 0, OP_TEXT = 1, OP_BINARY = 2, OP_CLOSE = 8, OP_PING = 9, OP_PONG = 10 };

/* Close codes (5.5). */
enum { NORMAL = 1000, BROKEN = 1002, NO_CODE = 1005 /* of a frame without one */, TOO_BIG = 1009, REPLACED = 4001, PROTOCOL = 4100 };

/* States of a socket, in this order. */
enum { S_NONE, S_DIAL, S_ASK /* the handshake is on its way, or its answer */, S_OPEN };

/* What a draining client does: nothing yet, wait for drain_at, come back. */
enum { STAY, DRAIN, LEAVE };

/* What a socket has to send besides data: bits of `pending`. */
enum { P_PONG = 1, P_CLOSE = 2 };

/* Headers seen in an answer. */
enum { H_UPGRADE = 1, H_CONNECTION = 2, H_ACCEPT = 4, H_PROTOCOL = 8, H_WRONG = 16, H_END = 32 };

/* States of a stream. */
enum { T_FREE, T_LIVE, T_GONE /* over for the program, not for the edge */ };

/* States of a direction. */
enum { D_OPEN, D_ENDING /* the end waits for what is before it */, D_ENDED };

/* What a stream has to send in the profile inline, or to say on the control socket. */
enum { W_FIN = 1, W_RESET = 2, W_REFUSED = 4 };

/* States of the client. */
enum { C_DOWN, C_DIAL, C_UP, C_OVER };

/* Fields of messages (4.1 to 6.4). */
enum {
	F_TYPE, F_TUNNEL, F_CAPS, F_HEARTBEAT, F_LABEL, F_HOSTNAME, F_LEASE, F_STREAMS, F_MESSAGE_MAX, F_EARLY,
	F_EARLY_TOTAL, F_TRANSFER, F_SECRET, F_PORT, F_KIND, F_URL, F_ADDR, F_STREAM, F_ID, F_FROM, F_WITHIN, FIELDS
};
static const char field_names[] =
	"type\0tunnel\0caps\0heartbeat_s\0label\0hostname\0lease_s\0streams\0message_max\0early\0"
	"early_total\0transfer\0secret\0port\0kind\0url\0addr\0stream\0id\0from\0within_s\0";

/* Kinds of values. */
enum { K_NONE, K_STRING, K_NUMBER, K_OTHER, K_BAD };

/* ---- Small things ---- */

static const char hex_digits[] = "0123456789abcdef";

/* since is how long ago a moment was, or minus how far away; the clock may wrap around. */
static int32_t since(uint32_t now, uint32_t then) { return (int32_t)(now - then); }

static uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

static uint32_t random_below(struct iott *c, uint32_t n) {
	uint32_t r;
	c->cfg->net->random(c->cfg->net->ctx, &r, sizeof r);
	return n ? r % n : 0;
}

/* find is the place of a word in a list of them, each with a zero byte behind it and one
 * more after the last; how many there are if it is none of them. */
static unsigned find(const char *list, const char *word) {
	unsigned i;
	for (i = 0; *list && strcmp(list, word) != 0; i++)
		list += strlen(list) + 1;
	return i;
}

static int is_digit(char ch) { return ch >= '0' && ch <= '9'; }

static char lower(char ch) { return ch >= 'A' && ch <= 'Z' ? (char)(ch + 32) : ch; }

/* same compares without regard to case; up to n characters of a with all of b. */
static int same(const char *a, size_t n, const char *b) {
	while (n > 0 && *b && lower(*a) == lower(*b))
		a++, b++, n--;
	return n == 0 && *b == 0;
}

/* has_token says whether a list with commas has a token, in whatever case. */
static int has_token(const char *list, const char *token) {
	while (*list) {
		const char *end;
		size_t n;
		while (*list == ' ' || *list == '\t' || *list == ',')
			list++;
		for (end = list; *end && *end != ','; end++)
			;
		for (n = (size_t)(end - list); n > 0 && (list[n - 1] == ' ' || list[n - 1] == '\t'); n--)
			;
		if (n > 0 && same(list, n, token))
			return 1;
		list = end;
	}
	return 0;
}

static uint32_t get32(const uint8_t *p) {
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put32(uint8_t *p, uint32_t n) {
	p[0] = (uint8_t)(n >> 24), p[1] = (uint8_t)(n >> 16), p[2] = (uint8_t)(n >> 8), p[3] = (uint8_t)n;
}

/* ---- SHA-1 (RFC 3174) and base64, which the handshake of RFC 6455 wants ---- */

static uint32_t rol(uint32_t x, unsigned n) { return x << n | x >> (32 - n); }

static void sha1_block(uint32_t h[5], const uint8_t *p) {
	uint32_t w[16], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
	unsigned i;
	for (i = 0; i < 80; i++) {
		uint32_t f, k, t;
		if (i < 16)
			w[i] = get32(p + 4 * i);
		else
			w[i & 15] = rol(w[(i + 13) & 15] ^ w[(i + 8) & 15] ^ w[(i + 2) & 15] ^ w[i & 15], 1);
		if (i < 20)
			f = (b & c) | (~b & d), k = 0x5a827999;
		else if (i < 40)
			f = b ^ c ^ d, k = 0x6ed9eba1;
		else if (i < 60)
			f = (b & c) | (b & d) | (c & d), k = 0x8f1bbcdc;
		else
			f = b ^ c ^ d, k = 0xca62c1d6;
		t = rol(a, 5) + f + e + k + w[i & 15];
		e = d, d = c, c = rol(b, 30), b = a, a = t;
	}
	h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

static void base64(char *out, const uint8_t *p, size_t n) {
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	size_t i;
	for (i = 0; i < n; i += 3) {
		uint32_t v = (uint32_t)p[i] << 16 | (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0);
		*out++ = digits[v >> 18];
		*out++ = digits[v >> 12 & 63];
		*out++ = i + 1 < n ? digits[v >> 6 & 63] : '=';
		*out++ = i + 2 < n ? digits[v & 63] : '=';
	}
	*out = 0;
}

/* accept_of is what the edge has to answer to a key (RFC 6455 §4.2.2): out has room
 * for 29 bytes. */
static void accept_of(char *out, const uint8_t *key) {
	uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
	uint8_t block[64], sum[20];
	unsigned i;
	char text[25];
	base64(text, key, KEY_LEN);
	memcpy(block, text, 24);
	memcpy(block + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
	memset(block + 60, 0, 4);
	block[60] = 0x80;
	sha1_block(h, block);
	memset(block, 0, 62);
	block[62] = 480 >> 8, block[63] = 480 & 255; /* bits of 24 + 36 bytes */
	sha1_block(h, block);
	for (i = 0; i < 5; i++)
		put32(sum + 4 * i, h[i]);
	base64(out, sum, 20);
}

/* ---- What is sent ---- */

/* frame puts one whole WebSocket frame of two pieces behind what waits in tx; 0 if there
 * is no room for it. */
static int frame(struct iott *c, struct iott_socket *k, int op, const void *a, size_t an, const void *b, size_t bn) {
	size_t n = an + bn, head = n < 126 ? 6 : 8, i;
	uint8_t *p, *mask;
	if (n > 0xffff || k->tx_cap - k->tx_len < head + n)
		return 0;
	p = k->tx + k->tx_len;
	*p++ = (uint8_t)(0x80 | op);
	if (n < 126) {
		*p++ = (uint8_t)(0x80 | n);
	} else {
		*p++ = 0x80 | 126;
		*p++ = (uint8_t)(n >> 8);
		*p++ = (uint8_t)n;
	}
	mask = p;
	c->cfg->net->random(c->cfg->net->ctx, mask, 4);
	p += 4;
	if (an)
		memcpy(p, a, an);
	if (bn)
		memcpy(p + an, b, bn);
	for (i = 0; i < n; i++)
		p[i] ^= mask[i & 3];
	k->tx_len += (uint32_t)(head + n);
	return 1;
}

/* hang_up closes a socket, with what is on its way. */
static void hang_up(struct iott *c, struct iott_socket *k, int reset) {
	if (k->sock >= 0)
		c->cfg->net->close(c->cfg->net->ctx, k->sock, reset);
	k->sock = -1;
	k->state = S_NONE;
	k->rx_len = k->tx_len = 0;
}

/* say_goodbye has a close frame sent, once. */
static void say_goodbye(struct iott_socket *k, int code) {
	if (k->send_code == 0) {
		k->send_code = (uint16_t)code;
		k->pending |= P_CLOSE;
	}
}

/* dial begins to connect a socket with the edge. */
static void dial(struct iott *c, struct iott_socket *k) {
	uint8_t *rx = k->rx, *tx = k->tx;
	uint32_t rx_cap = k->rx_cap, tx_cap = k->tx_cap;
	memset(k, 0, sizeof *k);
	k->rx = rx, k->tx = tx, k->rx_cap = rx_cap, k->tx_cap = tx_cap;
	k->since = k->heard = c->now;
	k->state = S_DIAL;
	k->sock = c->cfg->net->open(c->cfg->net->ctx, c->host, c->port, c->tls);
	if (k->sock < 0)
		k->sock = -1;
	c->cfg->net->random(c->cfg->net->ctx, k->pong, KEY_LEN); /* until a ping can come, its room is the key's */
}

/* owner is the stream of a transfer socket. */
static struct iott_stream *owner(struct iott *c, const struct iott_socket *k) {
	unsigned i;
	for (i = 0; i < c->cfg->streams; i++)
		if (c->streams[i].socket == k)
			return &c->streams[i];
	return NULL;
}

/* decimal writes a number and a zero byte, and returns where that is. */
static char *decimal(char *out, uint32_t n) {
	char digits[11];
	unsigned i = 0;
	do
		digits[i++] = (char)('0' + n % 10);
	while ((n /= 10) != 0);
	while (i > 0)
		*out++ = digits[--i];
	*out = 0;
	return out;
}

/* control_url is the *i-th piece of the first line of the control socket's request (3.1).
 * Behind the last it is NULL, and *i counts from there. scratch has 40 bytes. */
static const char *control_url(struct iott *c, unsigned *i, char *scratch) {
	static const char *const kinds[] = {"", "/http", "/https", "/tcp"};
	const struct iott_config *cfg = c->cfg;
	switch (*i) {
	case 0: return "GET /.iottunnel/v1/control?device=";
	case 1: return cfg->device;
	case 2: return "&instance=";
	case 3: return c->instance;
	case 4:
		if (cfg->heartbeat_s == 0)
			return "";
		memcpy(scratch, "&heartbeat=", 11);
		decimal(scratch + 11, cfg->heartbeat_s);
		return scratch;
	case 5:
		memcpy(scratch, "&streams=", 9);
		decimal(scratch + 9, cfg->streams);
		return scratch;
	case 6: return "&ports=";
	}
	*i -= 7;
	if (*i < cfg->nports) {
		char *p = scratch;
		if (*i > 0)
			*p++ = ',';
		strcpy(decimal(p, cfg->ports[*i].number), kinds[cfg->ports[*i].kind]);
		return scratch;
	}
	*i -= cfg->nports;
	if (cfg->profile == IOTT_INLINE) {
		switch (*i) {
		case 0: return "&caps=early,inline&message_max=512&early=";
		case 1: decimal(scratch, c->window); return scratch;
		case 2: scratch[0] = ','; decimal(scratch + 1, c->window * cfg->streams); return scratch;
		}
		*i -= 3;
	}
	return NULL;
}

/* transfer_url is the same for a stream's transfer socket (6.3). */
static const char *transfer_url(const struct iott *c, const struct iott_stream *s, unsigned *i) {
	switch (*i) {
	case 0: return "GET ";
	case 1: return c->transfer;
	case 2: return "&id=";
	case 3: return s->id;
	}
	*i -= 4;
	return NULL;
}

/* part is the i-th piece of a request; NULL after the last. scratch has 40 bytes. */
static const char *part(struct iott *c, const struct iott_socket *k, unsigned i, char *scratch) {
	const struct iott_stream *s = k == &c->control ? NULL : owner(c, k);
	const char *credential = s != NULL ? c->secret : c->cfg->token;
	const char *p = s != NULL ? transfer_url(c, s, &i) : control_url(c, &i, scratch);
	if (p != NULL)
		return p;
	switch (i) {
	case 0: return " HTTP/1.1\r\nHost: ";
	case 1: return c->host;
	case 2:
		if (c->port == (c->tls ? 443 : 80))
			return "";
		scratch[0] = ':';
		decimal(scratch + 1, c->port);
		return scratch;
	case 3: return "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ";
	case 4: base64(scratch, k->pong, KEY_LEN); return scratch;
	case 5: return "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: iottunnel.v1";
	case 6: return credential != NULL ? "\r\nAuthorization: Bearer " : "";
	case 7: return credential != NULL ? credential : "";
	case 8: return "\r\n\r\n";
	}
	return NULL;
}

/* ask puts as much of the request into tx as there is room; 1 when all of it is there. */
static int ask(struct iott *c, struct iott_socket *k) {
	for (;;) {
		char scratch[40];
		const char *p = part(c, k, k->part, scratch);
		size_t n;
		if (p == NULL)
			return 1;
		n = least((uint32_t)strlen(p + k->part_at), k->tx_cap - k->tx_len);
		memcpy(k->tx + k->tx_len, p + k->part_at, n);
		k->tx_len += (uint32_t)n;
		k->part_at = (uint16_t)(k->part_at + n);
		if (p[k->part_at] != 0)
			return 0;
		k->part++;
		k->part_at = 0;
	}
}

/* flush sends what waits in tx; IOTT_FAILED if that cannot be. */
static int flush(struct iott *c, struct iott_socket *k) {
	while (k->tx_len > 0) {
		long n = c->cfg->net->send(c->cfg->net->ctx, k->sock, k->tx, k->tx_len);
		if (n < 0)
			return IOTT_FAILED;
		if (n == 0)
			return 0;
		k->tx_len -= (uint32_t)n;
		memmove(k->tx, k->tx + n, k->tx_len);
	}
	return 0;
}

/* push sends what a socket has to say, and data after it. */
static int push(struct iott *c, struct iott_socket *k) {
	if (flush(c, k) < 0)
		return IOTT_FAILED;
	if (k->state == S_DIAL) {
		int ready = k->sock < 0 ? IOTT_FAILED : c->cfg->net->ready(c->cfg->net->ctx, k->sock);
		if (ready < 0)
			return IOTT_FAILED;
		if (!ready)
			return 0;
		k->state = S_ASK;
		k->since = c->now;
	}
	if (k->state == S_ASK) {
		while (!ask(c, k)) {
			uint32_t before = k->tx_len;
			if (flush(c, k) < 0)
				return IOTT_FAILED;
			if (k->tx_len == before)
				return 0;
		}
		return flush(c, k);
	}
	if (k->pending & P_PONG && !k->sent_close && frame(c, k, OP_PONG, k->pong, k->pong_len, NULL, 0))
		k->pending &= (uint8_t)~P_PONG;
	return flush(c, k);
}

/* close_frame sends the close frame that is due; 1 when it is on its way. */
static int close_frame(struct iott *c, struct iott_socket *k) {
	uint8_t code[2];
	if (k->pending & P_CLOSE) {
		code[0] = (uint8_t)(k->send_code >> 8), code[1] = (uint8_t)k->send_code;
		if (!frame(c, k, OP_CLOSE, code, 2, NULL, 0))
			return 0;
		k->pending = 0;
		k->sent_close = 1;
	}
	return k->sent_close;
}

/* part_with ends a socket with a close frame, as far as there is room for it. */
static void part_with(struct iott *c, struct iott_socket *k, int code) {
	say_goodbye(k, code);
	close_frame(c, k);
	flush(c, k);
}

/* overdue says that a handshake has taken too long. */
static int overdue(const struct iott *c, const struct iott_socket *k) {
	return k->state < S_OPEN && since(c->now, k->since) > (k->state == S_DIAL ? DIAL_TIME : ANSWER_TIME);
}

/* ---- Streams ---- */

static struct iott_stream *stream_of(struct iott *c, uint32_t number) {
	unsigned i;
	for (i = 0; i < c->cfg->streams; i++)
		if (c->streams[i].state != T_FREE && c->streams[i].number == number && !(c->streams[i].pending & W_RESET))
			return &c->streams[i];
	return NULL;
}

static int index_of(const struct iott *c, const struct iott_stream *s) { return (int)(s - c->streams); }

/* give_up tells the program that a stream is over, and something may be lost. */
static void give_up(struct iott *c, struct iott_stream *s) {
	int live = s->state == T_LIVE;
	s->state = T_GONE;
	if (live)
		c->cfg->on_abort(c->cfg->user, index_of(c, s));
}

/* release makes room for another stream. */
static void release(struct iott *c, struct iott_stream *s) {
	if (s->socket != NULL)
		hang_up(c, s->socket, 0);
	s->state = T_FREE;
	s->pending = 0;
}

/* say_refused sends a refusal (6.4); 0 if that has to wait. */
static int say_refused(struct iott *c, uint32_t number, const char *reason) {
	char text[REASON_MOST + 64], *p = text;
	unsigned i;
	if (c->control.state != S_OPEN || c->control.send_code != 0)
		return 0;
	memcpy(p, "{\"type\":\"refused\",\"stream\":", 27);
	p = decimal(p + 27, number);
	memcpy(p, ",\"reason\":\"", 11);
	p += 11;
	for (i = 0; i < REASON_MOST && reason[i]; i++) /* what would need an escape has no place in it */
		*p++ = reason[i] < 0x20 || reason[i] > 0x7e || reason[i] == '"' || reason[i] == '\\' ? '?' : reason[i];
	memcpy(p, "\"}", 2);
	return frame(c, &c->control, OP_TEXT, text, (size_t)(p + 2 - text), NULL, 0);
}

/* break_off ends a stream that cannot go on: the edge hears of it by a refusal, a reset, or
 * the end of the transfer socket. */
static void break_off(struct iott *c, struct iott_stream *s) {
	struct iott_socket *k = s->socket;
	int told = k != NULL;
	give_up(c, s);
	if (k != NULL && k->state != S_OPEN && s->number != 0) { /* nothing else would tell the edge */
		s->pending = W_REFUSED;
		if (s->reason == NULL)
			s->reason = "no transfer socket";
	}
	if (s->pending & W_REFUSED) {
		told = say_refused(c, s->number, s->reason);
		if (told)
			flush(c, &c->control); /* before the abort (6.4); what fails shows with the next poll */
	}
	if (k != NULL)
		hang_up(c, k, 1);
	if (told)
		release(c, s);
	else if (!(s->pending & W_REFUSED))
		s->pending = W_RESET;
}

/* settle follows the end of a direction: a stream ends when both have. */
static void settle(struct iott *c, struct iott_stream *s) {
	s->since = c->now; /* the end of a direction counts as a byte (6.8) */
	if (s->in != D_ENDED || s->out != D_ENDED || s->state == T_FREE)
		return;
	if (s->state == T_LIVE) {
		s->state = T_GONE;
		if (c->cfg->on_over != NULL)
			c->cfg->on_over(c->cfg->user, index_of(c, s));
	}
	if (s->socket != NULL) {
		s->socket->since = c->now;
		say_goodbye(s->socket, NORMAL); /* 6.6 */
	} else if (s->pending == 0) {
		release(c, s);
	}
}

/* offer gives the program what is held for it. */
static void offer(struct iott *c, struct iott_stream *s) {
	while (s->state == T_LIVE && s->hold_len > 0) {
		uint32_t run = least(s->hold_len, c->window - s->hold_at);
		size_t n = c->cfg->on_data(c->cfg->user, index_of(c, s), s->hold + s->hold_at, run);
		if (n > run)
			n = run;
		s->hold_at = (s->hold_at + (uint32_t)n) % c->window;
		s->hold_len -= (uint32_t)n;
		if (n > 0)
			s->since = c->now;
		if (s->in == D_OPEN)
			s->freed += (uint32_t)n;
		if (n < run)
			return;
	}
	if (s->state == T_LIVE && s->in == D_ENDING) {
		s->in = D_ENDED;
		c->cfg->on_end(c->cfg->user, index_of(c, s));
		settle(c, s);
	}
}

/* begin makes a stream s of an open. */
static void begin(struct iott *c, struct iott_stream *s, uint32_t number, uint16_t port, const char *id, const char *from, uint32_t early) {
	struct iott_socket *socket = s->socket;
	uint8_t *hold = s->hold;
	unsigned i;
	memset(s, 0, sizeof *s);
	s->socket = socket, s->hold = hold;
	s->state = T_LIVE;
	s->number = number, s->credit = s->window = early, s->since = c->now;
	strcpy(s->id, id);
	for (i = 0; i < c->cfg->nports && c->cfg->ports[i].number != port; i++)
		;
	if (i == c->cfg->nports) {
		s->state = T_GONE; /* the program has not heard of it */
		s->pending = W_REFUSED;
		s->reason = "no such port";
		break_off(c, s);
	} else if (c->cfg->on_open(c->cfg->user, index_of(c, s), port, from) != 0) {
		iott_refuse(c, index_of(c, s), "not served");
	} else if (s->state == T_LIVE && s->socket != NULL) {
		dial(c, s->socket);
	}
}

/* ---- Frames (9, 12) ---- */

/* violated counts what 10.9 and 12.3 forbid; the stream goes. */
static int violated(struct iott *c, struct iott_stream *s) {
	break_off(c, s);
	return ++c->breaches >= BREACHES ? PROTOCOL : 0;
}

/* take_data holds bytes of a data frame for the program. */
static int take_data(struct iott *c, struct iott_stream *s, const uint8_t *p, size_t n) {
	if (s->in != D_OPEN || n > s->window - s->hold_len - s->freed)
		return violated(c, s);
	if (s->state != T_LIVE)
		return 0;
	while (n > 0) {
		uint32_t at = (s->hold_at + s->hold_len) % c->window, run = least((uint32_t)n, c->window - at);
		memcpy(s->hold + at, p, run);
		s->hold_len += run;
		p += run, n -= run;
	}
	s->since = c->now;
	return 0;
}

/* take_credit takes credit (12.2) for a stream; NULL: one that is over. */
static int take_credit(struct iott *c, struct iott_stream *s, uint32_t credit) {
	if (credit == 0 || credit > 1048576)
		return PROTOCOL;
	if (s == NULL || s->out != D_OPEN)
		return 0;
	if (credit > s->due)
		return violated(c, s);
	s->due -= credit;
	s->credit += credit;
	return 0;
}

/* take_frame takes a piece of a frame on the control socket (9). It returns 0, or the code
 * to close with. */
static int take_frame(struct iott *c, const uint8_t *p, size_t n, int last) {
	struct iott_stream *s;
	c->frame_size += (uint32_t)n;
	if (c->frame_size > FRAME_MAX)
		return PROTOCOL;
	while (n > 0 && c->frame_len < 5)
		c->frame[c->frame_len++] = *p++, n--;
	if (c->frame_len < 5)
		return last ? PROTOCOL : 0;
	if (get32(c->frame + 1) == 0)
		return PROTOCOL;
	s = stream_of(c, get32(c->frame + 1));
	switch (c->frame[0]) {
	case DATA:
		if (last && c->frame_size == 5)
			return PROTOCOL;
		return s == NULL || n == 0 ? 0 : take_data(c, s, p, n);
	case CREDIT:
		while (n > 0 && c->frame_len < 9)
			c->frame[c->frame_len++] = *p++, n--;
		if (n > 0 || (last && c->frame_len != 9))
			return PROTOCOL;
		return last ? take_credit(c, s, get32(c->frame + 5)) : 0;
	case FIN:
	case RESET:
	case MOVE:
		if (n > 0)
			return PROTOCOL;
		if (!last || s == NULL)
			return 0;
		if (c->frame[0] == RESET) {
			give_up(c, s);
			release(c, s);
		} else if (c->frame[0] == MOVE || s->in != D_OPEN) {
			return violated(c, s);
		} else {
			s->in = s->state == T_LIVE ? D_ENDING : D_ENDED;
		}
		return 0;
	}
	if (last && s != NULL) /* 9.3 */
		break_off(c, s);
	return 0;
}

/* ---- Messages (4.3): one flat object of JSON, character by character ---- */

enum { J_START, J_KEY_OR_END, J_KEY, J_IN_KEY, J_COLON, J_VALUE, J_IN_STRING, J_IN_NUMBER, J_IN_WORD, J_NEXT, J_DONE, J_BAD };

static void text_begin(struct iott_text *t) { memset(t, 0, offsetof(struct iott_text, pool)); }

/* text_key follows the end of a field's name. */
static void text_key(struct iott_text *t) {
	t->field = FIELDS;
	if (t->key_len < sizeof t->key) {
		t->key[t->key_len] = 0;
		t->field = (uint8_t)find(field_names, t->key);
	}
	if (t->field < FIELDS && t->kinds[t->field] != K_NONE)
		t->state = J_BAD; /* no name stands twice */
}

/* text_char takes one character of a string's content, decoded. */
static void text_char(struct iott_text *t, unsigned code) {
	char ch = code > 0 && code < 0x7f ? (char)code : 0x7f; /* what is not ASCII is not allowed where it counts */
	if (t->state == J_IN_KEY) {
		if (t->key_len < sizeof t->key)
			t->key[t->key_len++] = ch;
	} else if (t->field < FIELDS) {
		if (t->used < sizeof t->pool - 1)
			t->pool[t->used++] = ch;
		else
			t->kinds[t->field] = K_BAD;
	}
}

/* text_string takes one character of a name or a string, its last quote included. */
static void text_string(struct iott_text *t, uint8_t ch) {
	if (t->escape == 0) {
		if (ch == '\\')
			t->escape = 1;
		else if (ch < 0x20)
			t->state = J_BAD;
		else if (ch != '"')
			text_char(t, ch);
		else if (t->state == J_IN_KEY) {
			t->state = J_COLON;
			text_key(t);
		} else {
			if (t->used == sizeof t->pool)
				t->kinds[t->field] = K_BAD; /* no room for its end */
			else if (t->field < FIELDS)
				t->pool[t->used++] = 0;
			t->state = J_NEXT;
		}
	} else if (t->escape == 1) {
		static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
		const char *at = ch ? strchr(from, ch) : NULL;
		t->escape = 0;
		if (ch == 'u')
			t->escape = 2, t->code = 0;
		else if (at != NULL)
			text_char(t, (uint8_t)to[at - from]);
		else
			t->state = J_BAD;
	} else {
		unsigned digit = ch >= '0' && ch <= '9' ? ch - '0' + 0u : (ch | 32) >= 'a' && (ch | 32) <= 'f' ? (ch | 32) - 'a' + 10u : 16;
		if (digit == 16) {
			t->state = J_BAD;
			return;
		}
		t->code = (uint16_t)(t->code << 4 | digit);
		if (++t->escape == 6) {
			t->escape = 0;
			text_char(t, t->code);
		}
	}
}

/* text_digit takes one more digit of a number. */
static void text_digit(struct iott_text *t, unsigned digit) {
	if (t->kind == 1 && t->number == 0 && t->escape == 0) {
		t->state = J_BAD; /* a leading zero */
		return;
	}
	if (t->number > (UINT32_MAX - digit) / 10)
		t->large = 1;
	else
		t->number = t->number * 10 + digit;
	if ((t->kind & 0x7f) < 0x7f)
		t->kind++;
}

/* text_number follows the last character of a number. */
static void text_number(struct iott_text *t) {
	if (t->kinds[t->field] != K_BAD) {
		t->kinds[t->field] = t->large && t->field != F_LEASE ? K_BAD : K_NUMBER;
		t->values[t->field] = t->number;
	}
	t->state = J_NEXT;
}

/* text_value takes the first character of a value. */
static void text_value(struct iott_text *t, uint8_t ch) {
	t->key_len = 0;
	if (ch == '"') {
		t->state = J_IN_STRING;
		t->kinds[t->field] = K_STRING;
		t->values[t->field] = t->used;
	} else if ((ch >= '0' && ch <= '9') || ch == '-') {
		t->state = J_IN_NUMBER;
		t->number = t->large = 0;
		t->kind = 0; /* digits of the integer part; 0x80: not an integer of this document */
		if (ch == '-')
			t->kind = 0x80, t->kinds[t->field] = K_BAD;
		else
			t->number = ch - '0' + 0u, t->kind = 1;
	} else if (ch == 't' || ch == 'f' || ch == 'n') {
		t->state = J_IN_WORD;
		t->key[t->key_len++] = (char)ch;
		t->kinds[t->field] = K_OTHER;
	} else {
		t->state = J_BAD;
	}
}

static int is_space(uint8_t ch) { return ch == ' ' || ch == '\t' || ch == '\n' || ch == '\r'; }

/* text_byte takes one character of a message. */
static void text_byte(struct iott_text *t, uint8_t ch) {
	switch (t->state) {
	case J_IN_KEY:
	case J_IN_STRING:
		text_string(t, ch);
		return;
	case J_IN_NUMBER:
		if (is_digit((char)ch)) {
			text_digit(t, ch - '0' + 0u);
			return;
		}
		if (ch == '.' || ch == 'e' || ch == 'E' || ch == '+' || ch == '-') {
			t->escape = 7; /* a number, but none of this document */
			t->kinds[t->field] = K_BAD;
			return;
		}
		t->escape = 0;
		text_number(t);
		break;
	case J_IN_WORD:
		if (ch >= 'a' && ch <= 'z') {
			if (t->key_len < sizeof t->key - 1)
				t->key[t->key_len++] = (char)ch;
			return;
		}
		t->key[t->key_len] = 0;
		t->state = find("true\0false\0null\0", t->key) < 3 ? J_NEXT : J_BAD;
		if (t->key[0] == 'n')
			t->kinds[t->field] = K_NONE; /* as if it were absent */
		break;
	}
	if (is_space(ch))
		return;
	switch (t->state) {
	case J_START: t->state = ch == '{' ? J_KEY_OR_END : J_BAD; return;
	case J_KEY_OR_END:
		if (ch == '}') {
			t->state = J_DONE;
			return;
		}
		/* fall through */
	case J_KEY:
		t->state = ch == '"' ? J_IN_KEY : J_BAD;
		t->key_len = 0;
		return;
	case J_COLON: t->state = ch == ':' ? J_VALUE : J_BAD; return;
	case J_VALUE: text_value(t, ch); return;
	case J_NEXT: t->state = ch == ',' ? J_KEY : ch == '}' ? J_DONE : J_BAD; return;
	}
	t->state = J_BAD;
}

/* str is a field that is a string of 0x21 to 0x7e, of at most `most` characters. With anything
 * else the message is J_BAD, as with the next two. An absent one is empty. */
static const char *str(struct iott_text *t, int field, size_t most) {
	const char *s, *p;
	if (t->kinds[field] == K_NONE)
		return "";
	if (t->kinds[field] == K_STRING) {
		s = t->pool + t->values[field];
		for (p = s; *p > 0x20 && *p < 0x7f; p++)
			;
		if (*p == 0 && (size_t)(p - s) <= most)
			return s;
	}
	t->state = J_BAD;
	return "";
}

/* number is a field from `from` to `to`. An absent one counts as 0. */
static uint32_t number(struct iott_text *t, int field, uint32_t from, uint32_t to) {
	uint32_t n = t->kinds[field] == K_NUMBER ? t->values[field] : 0;
	if ((t->kinds[field] != K_NUMBER && t->kinds[field] != K_NONE) || n < from || n > to)
		t->state = J_BAD;
	return n;
}

/* id is a field of 32 lower-case hexadecimal digits. */
static const char *id(struct iott_text *t, int field) {
	const char *s = str(t, field, 32);
	if (strspn(s, hex_digits) != 32)
		t->state = J_BAD;
	return s;
}

static int take_ready(struct iott *c) {
	struct iott_text *t = &c->text;
	const char *caps = str(t, F_CAPS, sizeof t->pool), *transfer = str(t, F_TRANSFER, TRANSFER_MOST), *secret = str(t, F_SECRET, SECRET_MOST);
	struct iott_ready r;
	int with_early = has_token(caps, "early");
	id(t, F_TUNNEL);
	r.label = str(t, F_LABEL, 63);
	r.hostname = str(t, F_HOSTNAME, 253);
	r.heartbeat_s = number(t, F_HEARTBEAT, 1, 900);
	r.streams = number(t, F_STREAMS, 1, 65535);
	number(t, F_MESSAGE_MAX, 512, 1048576);
	number(t, F_LEASE, 0, UINT32_MAX);
	number(t, F_EARLY, (uint32_t)with_early, 1048576);
	number(t, F_EARLY_TOTAL, (uint32_t)with_early, 1073741824);
	if (t->state == J_BAD || transfer[0] != '/' || transfer[1] == '/' || strchr(transfer, '?') == NULL || strchr(transfer, '#') != NULL ||
	    !*secret)
		return PROTOCOL;
	if (c->cfg->profile == IOTT_INLINE && !(with_early && has_token(caps, "inline")))
		return -1; /* an edge that cannot do it */
	if (c->transfer != NULL) { /* in the profile basic */
		strcpy(c->transfer, transfer);
		strcpy(c->secret, secret);
	}
	c->heartbeat_ms = r.heartbeat_s * 1000;
	if (!c->greeted)
		c->up_at = c->now;
	c->greeted = 1;
	if (c->cfg->on_ready != NULL)
		c->cfg->on_ready(c->cfg->user, &r);
	return 0;
}

static int take_port(struct iott *c) {
	struct iott_text *t = &c->text;
	const char *url = str(t, F_URL, 512), *addr = str(t, F_ADDR, 512), *kind = str(t, F_KIND, 512);
	uint32_t port = number(t, F_PORT, 1, 65535);
	if (t->state == J_BAD || !*kind)
		return PROTOCOL;
	if (c->cfg->on_address != NULL && (*url || *addr))
		c->cfg->on_address(c->cfg->user, (uint16_t)port, *url ? url : addr);
	return 0;
}

static int take_open(struct iott *c) {
	struct iott_text *t = &c->text;
	struct iott_stream *s;
	const char *name = id(t, F_ID), *from = str(t, F_FROM, 64);
	uint32_t stream = number(t, F_STREAM, 1, UINT32_MAX), port = number(t, F_PORT, 1, 65535), inl = c->cfg->profile == IOTT_INLINE;
	uint32_t early = number(t, F_EARLY, inl, inl ? c->window : UINT32_MAX);
	if (t->state == J_BAD || stream_of(c, stream) != NULL || !c->greeted)
		return PROTOCOL;
	for (s = c->streams; s < c->streams + c->cfg->streams; s++)
		if (s->state == T_FREE) {
			c->late = 0;
			begin(c, s, stream, (uint16_t)port, name, from, early);
			return 0;
		}
	/* One that the edge takes for over is about to be. Nothing more is read from the control
	 * socket meanwhile, so that the message stays where it is. */
	if (!c->late)
		c->late = 1, c->late_since = c->now;
	else if (since(c->now, c->late_since) > LATE_TIME && say_refused(c, stream, "no room"))
		c->late = 0;
	return 0;
}

/* take_message acts on a text message on the control socket. It returns 0, or the code to
 * close with; -1: this edge will not do. */
static int take_message(struct iott *c) {
	struct iott_text *t = &c->text;
	unsigned type;
	uint32_t within;
	if (t->state != J_DONE || t->kinds[F_TYPE] != K_STRING)
		return PROTOCOL;
	type = find("ready\0port\0open\0drain\0", t->pool + t->values[F_TYPE]);
	if (t->pool[t->values[F_TYPE]] == 0 || (type != 0 && t->len > 512))
		return PROTOCOL;
	switch (type) {
	case 0: return take_ready(c);
	case 1: return take_port(c);
	case 2: return take_open(c);
	case 3:
		within = number(t, F_WITHIN, 0, 86400);
		if (t->state == J_BAD)
			return PROTOCOL;
		if (c->draining == STAY) {
			c->draining = DRAIN;
			c->drain_at = c->now + random_below(c, within * 1000 + 1);
		}
	}
	return 0;
}

/* ---- What is received ---- */

/* message_piece takes n bytes of a message's payload, of which `last` says that they are the
 * end. It returns how many were taken, or minus the code to close with. */
static long message_piece(struct iott *c, struct iott_socket *k, const uint8_t *p, size_t n, int last) {
	struct iott_stream *s;
	size_t i, taken;
	int bad;
	if (k->send_code != 0) /* goodbye is said: what comes does not count (6.6) */
		return (long)n;
	if (k == &c->control) {
		if (k->message == OP_TEXT) {
			for (i = 0; i < n; i++)
				text_byte(&c->text, p[i]);
			c->text.len = (uint16_t)(c->text.len + n);
			if (c->text.len > TEXT_MAX)
				return -TOO_BIG;
			bad = last ? take_message(c) : 0;
		} else {
			bad = c->cfg->profile == IOTT_INLINE && c->greeted ? take_frame(c, p, n, last) : PROTOCOL;
		}
		return bad < 0 ? -PROTOCOL : bad ? -bad : (long)n;
	}
	s = owner(c, k);
	if (k->message != OP_BINARY || s->in != D_OPEN)
		return -PROTOCOL;
	if (s->state != T_LIVE)
		return (long)n;
	if (n == 0 && last && k->empty) { /* the whole message (6.5) */
		s->in = D_ENDED;
		c->cfg->on_end(c->cfg->user, index_of(c, s));
		settle(c, s);
		return 0;
	}
	if (n == 0)
		return 0;
	taken = c->cfg->on_data(c->cfg->user, index_of(c, s), p, n);
	if (taken > 0)
		s->since = c->now;
	return (long)(taken < n ? taken : n);
}

/* control_frame acts on a ping, pong or close frame that is there in whole. */
static int control_frame(struct iott_socket *k) {
	switch (k->opcode) {
	case OP_PING:
		memcpy(k->pong, k->side, k->side_len);
		k->pong_len = k->side_len;
		k->pending |= P_PONG;
		return 0;
	case OP_PONG: return 0;
	}
	k->got_close = 1;
	if (k->side_len == 1)
		return BROKEN;
	k->close_code = k->side_len ? (uint16_t)(k->side[0] << 8 | k->side[1]) : NO_CODE;
	if (k->side_len && (k->close_code < NORMAL || (k->close_code >= 1004 && k->close_code <= 1006) ||
	                    (k->close_code >= 1015 && k->close_code < 3000) || k->close_code >= 5000)) { /* RFC 6455 §7.4 */
		k->close_code = 0;
		return BROKEN;
	}
	return 0;
}

/* frame_head judges the header of a frame, which is there in whole and of so many bytes without
 * a mask, and makes its payload the next. It returns 0, or the code to close with. */
static int frame_head(struct iott *c, struct iott_socket *k, size_t len) {
	uint8_t op = k->head[0] & 15;
	k->left = len == 2 ? k->head[1] & 127u : len == 4 ? get32(k->head) & 0xffff : get32(k->head + 6);
	if (k->head[0] & 0x70 || k->head[1] & 0x80 || (op > OP_BINARY && op < OP_CLOSE) || op > OP_PONG)
		return BROKEN;
	if (len == 10 && !(k->head[2] & 0x80) && (get32(k->head + 2) != 0 || k->left > 1048576))
		return TOO_BIG;
	if (k->left < (len == 4 ? 126u : len == 10 ? 65536u : 0u) || (len == 10 && k->head[2] & 0x80))
		return BROKEN; /* a length in more bytes than it takes (RFC 6455 §5.2) */
	if (op >= OP_CLOSE && (!(k->head[0] & 0x80) || k->left > 125))
		return BROKEN;
	if (op < OP_CLOSE && (op == OP_CONT) != (k->message != 0))
		return BROKEN;
	k->opcode = op;
	k->reading = 1;
	k->head_len = 0;
	k->side_len = 0;
	if (op == OP_TEXT || op == OP_BINARY) {
		k->message = op;
		k->empty = 1;
		if (k == &c->control) {
			text_begin(&c->text);
			c->frame_len = 0, c->frame_size = 0;
		}
	}
	return 0;
}

/* frames takes what it can of n bytes of WebSocket frames. It returns how many bytes that
 * were, or minus the code to close with. */
static long frames(struct iott *c, struct iott_socket *k, const uint8_t *p, size_t n) {
	size_t at = 0;
	int bad;
	while (!k->got_close && k->state == S_OPEN && !(c->late && k == &c->control)) {
		size_t want, run;
		if (!k->reading) {
			for (;;) {
				want = k->head_len < 2 || (k->head[1] & 127) < 126 ? 2 : (k->head[1] & 127) == 126 ? 4 : 10;
				if (k->head_len >= want)
					break;
				if (at == n)
					return (long)at;
				k->head[k->head_len++] = p[at++];
			}
			if ((bad = frame_head(c, k, want)) != 0)
				return -bad;
		}
		run = least((uint32_t)(n - at), k->left);
		if (k->opcode >= OP_CLOSE) {
			memcpy(k->side + k->side_len, p + at, run);
			k->side_len = (uint8_t)(k->side_len + run);
			at += run, k->left -= (uint32_t)run;
			if (k->left > 0)
				return (long)at;
			k->reading = 0;
			if ((bad = control_frame(k)) != 0)
				return -bad;
		} else {
			int last = k->left == run && k->head[0] & 0x80;
			long took = message_piece(c, k, p + at, run, last);
			if (took < 0)
				return took;
			if (took > 0)
				k->empty = 0;
			at += (size_t)took, k->left -= (uint32_t)took;
			if (k->left > 0)
				return (long)at;
			k->reading = 0;
			if (k->head[0] & 0x80)
				k->message = 0;
		}
		if (at == n)
			break;
	}
	return (long)at;
}

/* header takes one line of an answer. */
static void header(struct iott_socket *k, char *line) {
	char *value = line, *end, accept[29];
	for (; *value != ':'; value++) {
		if (*value == 0)
			return;
		*value = lower(*value);
	}
	for (*value++ = 0; *value == ' ' || *value == '\t'; value++)
		;
	for (end = value + strlen(value); end > value && (end[-1] == ' ' || end[-1] == '\t');)
		*--end = 0;
	switch (find("upgrade\0connection\0sec-websocket-accept\0sec-websocket-protocol\0sec-websocket-extensions\0retry-after\0", line)) {
	case 0: k->seen |= has_token(value, "websocket") ? H_UPGRADE : 0; return;
	case 1: k->seen |= has_token(value, "upgrade") ? H_CONNECTION : 0; return;
	case 2:
		accept_of(accept, k->pong);
		k->seen |= strcmp(value, accept) == 0 ? H_ACCEPT : H_WRONG;
		return;
	case 3: k->seen |= strcmp(value, "iottunnel.v1") == 0 ? H_PROTOCOL : H_WRONG; return;
	case 4: k->seen |= H_WRONG; return;
	case 5:
		for (k->retry_s = 0; is_digit(*value) && k->retry_s < 100000; value++)
			k->retry_s = k->retry_s * 10 + (uint32_t)(*value - '0');
	}
}

/* answer takes what it can of an answer to a handshake, up to its end. */
static size_t answer(struct iott_socket *k, const uint8_t *p, size_t n) {
	size_t at = 0;
	while (at < n && !(k->seen & H_END)) {
		char *line = (char *)k->side;
		char ch = (char)p[at++];
		if (ch == '\r')
			continue;
		if (ch != '\n') {
			if (k->side_len < sizeof k->side - 1) /* a longer line is none that counts */
				line[k->side_len++] = ch;
			continue;
		}
		line[k->side_len] = 0;
		if (k->status == 0) {
			if (k->side_len < 12 || memcmp(line, "HTTP/1.", 7) != 0 || line[8] != ' ' || !is_digit(line[9]) || !is_digit(line[10]) ||
			    !is_digit(line[11])) {
				k->seen |= H_END | H_WRONG;
				return at;
			}
			k->status = (uint16_t)((line[9] - '0') * 100 + (line[10] - '0') * 10 + (line[11] - '0'));
		} else if (k->side_len == 0 && k->status < 200 && k->status != 101) {
			k->status = k->seen = 0; /* of an answer before the answer (RFC 9110 §15.2) */
		} else if (k->side_len == 0) {
			k->seen |= H_END;
		} else {
			header(k, line);
		}
		k->side_len = 0;
	}
	return at;
}

/* receive reads a socket. It returns 0, a close code to end with as a positive number, or a
 * negative result of the port. */
static int receive(struct iott *c, struct iott_socket *k) {
	unsigned rounds;
	for (rounds = 0; rounds < ROUNDS && k->state != S_NONE; rounds++) {
		long n = 0, used = 0;
		if (k->rx_len < k->rx_cap && !k->got_close && !k->eof) {
			n = c->cfg->net->recv(c->cfg->net->ctx, k->sock, k->rx + k->rx_len, k->rx_cap - k->rx_len);
			if (n > 0) {
				k->rx_len += (uint32_t)n;
				k->heard = c->now;
			} else if (n == IOTT_EOF) {
				k->eof = 1;
				n = 0;
			}
		}
		if (k->state == S_ASK && k->rx_len > 0) {
			used = (long)answer(k, k->rx, k->rx_len);
			if (k->seen & H_END) {
				if (k->status != 101 || (k->seen & (H_END - 1)) != (H_UPGRADE | H_CONNECTION | H_ACCEPT | H_PROTOCOL))
					return IOTT_FAILED;
				k->state = S_OPEN;
				k->since = c->now;
				k->side_len = 0;
			}
		} else if (k->state == S_OPEN && (k->rx_len > 0 || k->reading)) {
			used = frames(c, k, k->rx, k->rx_len);
			if (used < 0)
				return (int)-used;
		}
		if (k->state == S_NONE)
			return 0;
		k->rx_len -= (uint32_t)used;
		memmove(k->rx, k->rx + used, k->rx_len);
		if (n < 0)
			return (int)n;
		if (k->eof && (k->rx_len == 0 || k->got_close)) /* what came before the end comes first */
			return IOTT_EOF;
		if (n == 0 && used == 0)
			return 0;
	}
	c->more = 1;
	return 0;
}

/* ---- A transfer socket (6) ---- */

/* poll_transfer does what there is to do on the transfer socket of a stream. */
static void poll_transfer(struct iott *c, struct iott_stream *s) {
	struct iott_socket *k = s->socket;
	int bad, ended = s->in == D_ENDED && s->out == D_ENDED;
	if (k->state == S_NONE)
		return;
	bad = push(c, k);
	if (bad == 0 && k->state >= S_ASK) {
		bad = receive(c, k);
		if (s->state == T_FREE || k->state == S_NONE) /* the program has ended it meanwhile */
			return;
	}
	ended = ended || (s->in == D_ENDED && s->out == D_ENDED);
	if (bad > 0) {
		part_with(c, k, bad);
		hang_up(c, k, 0); /* a reset would overtake the close frame */
		s->number = 0;
		break_off(c, s);
		return;
	}
	if (bad < 0 || (k->got_close && !ended)) {
		if (ended)
			release(c, s);
		else
			break_off(c, s);
		return;
	}
	if (k->state == S_OPEN && s->out == D_ENDING && frame(c, k, OP_BINARY, NULL, 0, NULL, 0)) {
		s->out = D_ENDED;
		settle(c, s);
	}
	if (k->state == S_OPEN && close_frame(c, k) && k->got_close && k->tx_len == 0) {
		release(c, s);
		return;
	}
	if (push(c, k) < 0 && !ended) {
		break_off(c, s);
		return;
	}
	if (overdue(c, k)) {
		break_off(c, s);
	} else if (s->in == D_ENDED && s->out == D_ENDED) {
		if (since(c->now, k->since) > GRACE_TIME)
			release(c, s);
	} else if ((s->in == D_ENDED || s->out == D_ENDED) && since(c->now, s->since) > HALF_TIME) {
		break_off(c, s);
	}
}

/* ---- Coming back (5.5 to 5.7) ---- */

static uint32_t max_backoff(const struct iott_config *cfg) { return cfg->max_backoff_ms ? cfg->max_backoff_ms : 30000; }

/* backoff is how long to wait after one failure more (5.6). */
static uint32_t backoff(struct iott *c) {
	uint32_t most = max_backoff(c->cfg);
	uint32_t bound = c->failures == 0 ? FIRST_RETRY : c->failures > 12 ? most : least(most, 1000u << (c->failures - 1));
	if (c->failures < 255)
		c->failures++;
	return random_below(c, bound + 1);
}

/* drop ends streams with their tunnel: all, or those that cannot go on without it. */
static void drop(struct iott *c, int all) {
	struct iott_stream *s;
	for (s = c->streams; s < c->streams + c->cfg->streams; s++) {
		if (s->state == T_FREE)
			continue;
		s->pending = 0;
		s->number = 0; /* of no tunnel any more */
		/* 5.3, 10.10; what both sides have ended is over but for bytes that the program holds up */
		if (!all && (s->socket != NULL ? s->socket->state == S_OPEN : s->in == D_ENDING && s->out == D_ENDED))
			continue;
		give_up(c, s);
		if (s->socket != NULL)
			hang_up(c, s->socket, 1);
		release(c, s);
	}
}

/* down ends the tunnel, or an attempt, and plans the next one (5.5, 5.6). */
static void down(struct iott *c, const char *why) {
	struct iott_socket *k = &c->control;
	struct iott_end end;
	uint32_t most = max_backoff(c->cfg), pause;
	end.status = k->seen & H_END && k->status != 101 ? k->status : 0;
	end.code = k->close_code;
	end.why = c->stopping ? "stopped" : why;
	hang_up(c, k, 0);
	if (end.status == 401 || end.status == 403 || (end.status >= 300 && end.status < 400) || (end.code >= 4000 && end.code < 4100)) {
		pause = SLOW_MIN + random_below(c, SLOW_SPAN + 1);
	} else if ((end.status == 429 || end.status == 503) && k->retry_s > 0) {
		pause = least(k->retry_s, RETRY_MOST / 1000) * 1000;
		pause += random_below(c, pause / 5 + 1);
	} else if (end.status != 0 || (end.code >= 4100 && end.code < 4200)) {
		pause = random_below(c, most + 1);
	} else if (c->draining == LEAVE && c->failures == 0) {
		pause = 0; /* 5.4 has waited already */
		c->failures = 1;
	} else if (!c->greeted && c->untried != 0) {
		pause = 0;
	} else {
		pause = backoff(c);
	}
	if (c->greeted)
		c->untried = 0, c->pause = 0;
	if (end.status == 429 && k->retry_s > 0 && k->retry_s <= CROWD && !c->put_off) /* it keeps a place (5.7) */
		c->untried = 0, c->put_off = 1;
	else if (c->untried == 0)
		c->put_off = 0;
	if (pause > c->pause)
		c->pause = pause;
	if (c->untried != 0) { /* the next server, before any wait (5.7) */
		pause = 0;
	} else {
		pause = c->pause;
		c->pause = 0;
	}
	c->state = C_DOWN;
	c->retry_at = c->now + pause;
	drop(c, end.code == REPLACED || end.code == 4003 || c->stopping);
	if (c->stopping)
		c->state = C_OVER;
	end.retry_ms = pause;
	if (c->cfg->on_down != NULL)
		c->cfg->on_down(c->cfg->user, &end);
}

/* choose takes a server's URL apart. iott_init has checked it. */
static const char *choose(struct iott *c, const char *url) {
	const char *p, *end;
	uint32_t port = 0;
	size_t n;
	if (strncmp(url, "wss://", 6) == 0)
		c->tls = 1, p = url + 6;
	else if (strncmp(url, "ws://", 5) == 0)
		c->tls = 0, p = url + 5;
	else
		return "servers: wss://HOST or wss://HOST:PORT";
	end = strpbrk(p, ":/");
	n = end ? (size_t)(end - p) : strlen(p);
	if (n == 0 || n >= sizeof c->host)
		return "servers: wss://HOST or wss://HOST:PORT";
	memcpy(c->host, p, n);
	c->host[n] = 0;
	p += n;
	c->port = c->tls ? 443 : 80;
	if (*p == ':') {
		for (p++; *p >= '0' && *p <= '9' && port < 65536; p++)
			port = port * 10 + (uint32_t)(*p - '0');
		if (port == 0 || port > 65535)
			return "servers: wss://HOST or wss://HOST:PORT";
		c->port = (uint16_t)port;
	}
	if (*p != 0 && strcmp(p, "/") != 0)
		return "servers: wss://HOST or wss://HOST:PORT";
	if (!c->tls && !c->cfg->allow_plaintext && strcmp(c->host, "localhost") != 0 &&
	    (strncmp(c->host, "127.", 4) != 0 || c->host[strspn(c->host, "0123456789.")] != 0)) /* a name may begin so too */
		return "servers: ws sends the token in clear: set allow_plaintext or use wss";
	return NULL;
}

/* next_server draws one that was not tried in this round (5.7). */
static unsigned next_server(struct iott *c) {
	unsigned n = c->cfg->nservers, i;
	if (c->untried == 0)
		c->untried = UINT32_MAX >> (32 - n);
	for (i = random_below(c, n); !(c->untried >> i & 1); i = (i + 1) % n)
		;
	c->untried &= ~((uint32_t)1 << i);
	return i;
}

/* ---- The control socket ---- */

/* say_all sends what a stream has to say on the control socket: a refusal, an end, a reset
 * or credit; 0 if some of it finds no room. */
static int say_all(struct iott *c, struct iott_stream *s) {
	uint8_t head[9];
	if (s->state == T_FREE)
		return 1;
	if (s->pending & W_REFUSED) {
		if (!say_refused(c, s->number, s->reason))
			return 0;
		release(c, s);
		return 1;
	}
	if (s->socket != NULL)
		return 1;
	put32(head + 1, s->number);
	head[0] = s->pending & W_RESET ? RESET : FIN;
	if (s->pending && !frame(c, &c->control, OP_BINARY, head, 5, NULL, 0))
		return 0;
	if (s->pending & W_RESET) {
		release(c, s);
		return 1;
	}
	if (s->pending & W_FIN) {
		s->pending = 0;
		s->wrote = 1;
		s->out = D_ENDED;
		settle(c, s);
	}
	if (s->state != T_FREE && s->in == D_OPEN && s->freed >= (s->window + 1) / 2) {
		head[0] = CREDIT;
		put32(head + 5, s->freed);
		if (!frame(c, &c->control, OP_BINARY, head, 9, NULL, 0))
			return 0;
		s->freed = 0;
		s->wrote = 1;
	}
	return 1;
}

/* speak sends what streams have to say on the control socket, up to the first that finds no
 * room: the next time that is the first (9.4). */
static void speak(struct iott *c) {
	unsigned i;
	for (i = 0; i < c->cfg->streams; i++) {
		unsigned at = (i + c->turn) % c->cfg->streams;
		if (!say_all(c, &c->streams[at])) {
			c->turn = (uint8_t)at;
			return;
		}
	}
}

/* poll_control does what there is to do on the control socket, and for the way to it. */
static void poll_control(struct iott *c) {
	struct iott_socket *k = &c->control;
	int bad;
	if (c->state == C_DOWN) {
		if (since(c->now, c->retry_at) < 0)
			return;
		choose(c, c->cfg->servers[next_server(c)]);
		c->greeted = c->draining = c->breaches = c->late = 0;
		c->state = C_DIAL;
		dial(c, k);
	}
	bad = push(c, k);
	if (c->late)
		take_open(c);
	if (bad == 0 && k->state >= S_ASK)
		bad = receive(c, k);
	if (bad > 0) {
		part_with(c, k, bad);
		down(c, "the edge broke the protocol");
		return;
	}
	if (bad < 0) {
		down(c, k->state == S_DIAL ? "no connection" : k->state == S_ASK ? "no tunnel" : "the connection broke");
		return;
	}
	if (k->got_close) { /* answered, whatever it was */
		part_with(c, k, k->close_code != NO_CODE ? k->close_code : NORMAL);
		down(c, "the edge has closed the tunnel");
		return;
	}
	if (k->state != S_OPEN) {
		if (c->stopping || overdue(c, k))
			down(c, "no answer in time");
		return;
	}
	c->state = C_UP;
	if (c->greeted && since(c->now, c->up_at) >= HELD_TIME)
		c->failures = 0, c->up_at = c->now - HELD_TIME; /* so that it stays true when the clock wraps around */
	if (c->draining == DRAIN && since(c->now, c->drain_at) >= 0) {
		c->draining = LEAVE; /* without a goodbye, so that visitors wait (5.3) */
		down(c, "the edge asked to come back");
		return;
	}
	if (c->stopping && k->send_code == 0) {
		say_goodbye(k, NORMAL);
		k->since = c->now;
	}
	if (!k->sent_close)
		speak(c);
	close_frame(c, k);
	if (push(c, k) < 0)
		down(c, "the connection broke");
	else if (k->sent_close && since(c->now, k->since) > GOODBYE_TIME)
		down(c, "no answer to the goodbye");
	else if (!c->greeted && since(c->now, k->since) > READY_TIME)
		down(c, "no word of a tunnel");
	else if (c->greeted && since(c->now, k->heard) > (int32_t)(2 * c->heartbeat_ms + GRACE_TIME))
		down(c, "silence");
}

/* ---- What the program calls ---- */

/* window_of is how many bytes are held per stream and direction. */
static uint32_t window_of(const struct iott_config *cfg) { return cfg->buffer ? cfg->buffer : 1024; }

size_t iott_memory(const struct iott_config *cfg) {
	size_t n, window = window_of(cfg);
	if (cfg->streams < 1 || cfg->streams > 32 || window < 64 || window > 32768)
		return 0;
	n = RX_CONTROL + TX_MIN + TX_RESERVE + cfg->streams * sizeof(struct iott_stream);
	if (cfg->profile == IOTT_INLINE)
		n += cfg->streams * window;
	else
		n += cfg->streams * (sizeof(struct iott_socket) + RX_STREAM + window + TX_RESERVE) + TRANSFER_MOST + 1 + SECRET_MOST + 1;
	return n + 2 * sizeof(void *);
}

/* wrong is what is wrong with a configuration, save its servers and the memory; NULL: nothing. */
static const char *wrong(const struct iott_config *cfg) {
	static const char device[] = "device: 1 to 63 of a-z, 0-9 and -";
	unsigned i;
	if (cfg->net == NULL || cfg->on_open == NULL || cfg->on_data == NULL || cfg->on_end == NULL || cfg->on_abort == NULL)
		return "net, on_open, on_data, on_end, on_abort: needed";
	if (cfg->device == NULL || cfg->device[0] == 0 || strlen(cfg->device) > 63)
		return device;
	for (i = 0; cfg->device[i]; i++)
		if (!((cfg->device[i] >= 'a' && cfg->device[i] <= 'z') || is_digit(cfg->device[i]) || cfg->device[i] == '-'))
			return device;
	for (i = 0; cfg->token != NULL && cfg->token[i]; i++)
		if (cfg->token[i] < 0x21 || cfg->token[i] > 0x7e)
			return "token: visible ASCII only";
	if (cfg->nports < 1 || cfg->nports > 32)
		return "ports: 1 to 32";
	for (i = 0; i < cfg->nports; i++)
		if (cfg->ports[i].number == 0 || cfg->ports[i].kind > IOTT_TCP)
			return "ports: 1 to 65535, of a kind of iott_kind";
	if (cfg->nservers < 1 || cfg->nservers > 32)
		return "servers: 1 to 32";
	if (cfg->max_backoff_ms > 86400000)
		return "max_backoff_ms: at most a day";
	if (cfg->heartbeat_s > 900)
		return "heartbeat_s: 0 to 900";
	if (iott_memory(cfg) == 0)
		return "streams: 1 to 32; buffer: 64 to 32768";
	return NULL;
}

/* carve takes n bytes off the memory. */
static void *carve(uint8_t **mem, size_t n) {
	void *p = *mem;
	*mem += n;
	return p;
}

/* lay_out gives streams and sockets their memory, of which iott_memory says how much it is.
 * What has to be aligned comes first. */
static void lay_out(struct iott *c, uint8_t *mem) {
	const struct iott_config *cfg = c->cfg;
	unsigned i;
	c->streams = carve(&mem, cfg->streams * sizeof *c->streams);
	for (i = 0; i < cfg->streams && cfg->profile == IOTT_BASIC; i++) {
		c->streams[i].socket = carve(&mem, sizeof *c->streams[i].socket);
		c->streams[i].socket->sock = -1;
	}
	for (i = 0; i < cfg->streams; i++) {
		struct iott_socket *k = c->streams[i].socket;
		if (k == NULL) {
			c->streams[i].hold = carve(&mem, c->window);
			continue;
		}
		k->rx = carve(&mem, k->rx_cap = RX_STREAM);
		k->tx = carve(&mem, k->tx_cap = c->window + TX_RESERVE);
	}
	if (cfg->profile == IOTT_BASIC) {
		c->transfer = carve(&mem, TRANSFER_MOST + 1);
		c->secret = carve(&mem, SECRET_MOST + 1);
	}
	c->control.sock = -1;
	c->control.rx = carve(&mem, c->control.rx_cap = RX_CONTROL);
	c->control.tx = carve(&mem, c->control.tx_cap = TX_MIN + TX_RESERVE);
}

const char *iott_init(struct iott *c, const struct iott_config *cfg, void *memory, size_t len) {
	uint8_t random[16];
	const char *bad = wrong(cfg);
	unsigned i;
	if (bad != NULL)
		return bad;
	if (memory == NULL || len < iott_memory(cfg))
		return "memory: less than iott_memory";
	memset(c, 0, sizeof *c);
	c->cfg = cfg;
	c->window = window_of(cfg);
	for (i = 0; i < cfg->nservers; i++)
		if ((bad = choose(c, cfg->servers[i])) != NULL)
			return bad;
	memset(memory, 0, iott_memory(cfg));
	lay_out(c, memory);
	cfg->net->random(cfg->net->ctx, random, sizeof random);
	for (i = 0; i < 16; i++) {
		c->instance[2 * i] = hex_digits[random[i] >> 4];
		c->instance[2 * i + 1] = hex_digits[random[i] & 15];
	}
	return NULL;
}

uint32_t iott_poll(struct iott *c, uint32_t now_ms) {
	uint32_t wait = TICK;
	unsigned i, first;
	if (c->state == C_OVER)
		return IOTT_OVER;
	if (!c->begun) { /* the first time: whatever the clock says, begin now */
		c->begun = 1;
		c->retry_at = now_ms;
	}
	c->now = now_ms;
	c->more = 0;
	if (c->state == C_DOWN && c->stopping) {
		drop(c, 1);
		c->state = C_OVER;
	} else {
		poll_control(c);
	}
	for (first = c->next, i = 0; i < c->cfg->streams; i++) {
		unsigned at = (first + i) % c->cfg->streams;
		struct iott_stream *s = &c->streams[at];
		if (s->socket != NULL)
			poll_transfer(c, s);
		else if (s->state != T_FREE)
			offer(c, s);
		if (s->state == T_LIVE && s->out == D_OPEN && s->wants && iott_writable(c, (int)at) > 0) {
			s->wants = 0;
			if (c->cfg->on_writable != NULL)
				c->cfg->on_writable(c->cfg->user, (int)at);
		}
		if (s->state == T_LIVE && s->socket == NULL && (s->in == D_ENDED || s->out == D_ENDED) && since(c->now, s->since) > HALF_TIME)
			break_off(c, s);
	}
	if (c->state == C_UP && !c->control.sent_close) { /* what callbacks have left to say */
		speak(c);
		push(c, &c->control); /* what fails shows with the next poll */
	}
	if (c->state == C_OVER)
		return IOTT_OVER;
	if (c->state == C_DOWN && since(c->retry_at, c->now) < TICK)
		wait = since(c->retry_at, c->now) > 0 ? c->retry_at - c->now : 0;
	for (i = 0; i < c->cfg->streams; i++)
		if (c->streams[i].state == T_LIVE && (c->streams[i].hold_len > 0 || (c->streams[i].socket != NULL && c->streams[i].socket->rx_len > 0)))
			wait = least(wait, SOON);
	if (c->late)
		wait = least(wait, SOON);
	return c->more ? 0 : wait;
}

/* live is a stream that the program may still speak of; else NULL. */
static struct iott_stream *live(struct iott *c, int stream) {
	if (stream < 0 || (unsigned)stream >= c->cfg->streams || c->streams[stream].state != T_LIVE)
		return NULL;
	return &c->streams[stream];
}

size_t iott_writable(const struct iott *c, int stream) {
	const struct iott_stream *s = live((struct iott *)c, stream);
	const struct iott_socket *k;
	uint32_t room, head = 8;
	if (s == NULL || s->out != D_OPEN || s->pending)
		return 0;
	k = s->socket != NULL ? s->socket : &c->control;
	if (k->state != S_OPEN || k->send_code != 0)
		return 0;
	room = k->tx_cap - k->tx_len;
	if (s->socket == NULL)
		head += 5;
	if (room <= head + TX_RESERVE)
		return 0;
	room -= head + TX_RESERVE;
	return s->socket != NULL ? room : least(room, s->credit);
}

size_t iott_write(struct iott *c, int stream, const void *p, size_t n) {
	struct iott_stream *s = live(c, stream);
	size_t room = iott_writable(c, stream);
	uint8_t head[5];
	if (s == NULL)
		return 0;
	if (n > room)
		n = room, s->wants = 1;
	if (n == 0)
		return 0;
	if (s->socket != NULL) {
		frame(c, s->socket, OP_BINARY, p, n, NULL, 0);
		flush(c, s->socket); /* what fails shows with the next poll */
	} else {
		head[0] = DATA;
		put32(head + 1, s->number);
		frame(c, &c->control, OP_BINARY, head, 5, p, n);
		s->credit -= (uint32_t)n;
		s->due += (uint32_t)n;
		c->next = (uint8_t)((unsigned)stream + 1); /* 9.4: with the next poll the others come first */
		flush(c, &c->control);
	}
	s->since = c->now;
	s->wrote = 1;
	return n;
}

void iott_finish(struct iott *c, int stream) {
	struct iott_stream *s = live(c, stream);
	if (s == NULL || s->out != D_OPEN)
		return;
	s->out = D_ENDING;
	if (s->socket == NULL)
		s->pending |= W_FIN;
}

void iott_abort(struct iott *c, int stream) {
	struct iott_stream *s = live(c, stream);
	if (s == NULL)
		return;
	s->state = T_GONE; /* so that on_abort is not called */
	if (s->reason == NULL)
		s->reason = "given up";
	break_off(c, s);
}

void iott_refuse(struct iott *c, int stream, const char *reason) {
	struct iott_stream *s = live(c, stream);
	if (s == NULL)
		return;
	s->reason = reason;
	if (s->number != 0 && !s->wrote && s->out == D_OPEN)
		s->pending = W_REFUSED;
	iott_abort(c, stream);
}

void iott_stop(struct iott *c) { c->stopping = 1; }
