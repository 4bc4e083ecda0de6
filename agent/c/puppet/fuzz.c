/* fuzz has an edge, a network and a program that do anything: whatever comes, the client
 * must not touch memory that is not its own, spin, or call back for a stream that is over.
 * For libFuzzer: clang -g -O1 -fsanitize=fuzzer,address,undefined puppet/fuzz.c iott.c */
#include <stdlib.h>
#include <string.h>

#include "../iott.h"

enum { STREAMS = 3, SOCKETS = 4096 };

static const uint8_t *input;
static size_t left;
static struct iott client;
static int nsockets, open_sockets, live[STREAMS];

static void must(int ok) {
	if (!ok)
		abort();
}

static uint8_t byte(void) { return left > 0 ? (left--, *input++) : 0; }

static int net_open(void *ctx, const char *host, uint16_t port, int tls) {
	(void)ctx, (void)port, (void)tls;
	must(strlen(host) < 254);
	if (byte() == 255)
		return IOTT_FAILED;
	open_sockets++;
	must(open_sockets <= STREAMS + 1);
	return nsockets++;
}

static int net_ready(void *ctx, int sock) {
	uint8_t b = byte();
	(void)ctx;
	must(sock >= 0 && sock < nsockets);
	return b == 255 ? IOTT_FAILED : b == 254 ? 0 : 1;
}

static long net_send(void *ctx, int sock, const void *p, size_t n) {
	uint8_t b = byte();
	volatile uint8_t sum = 0;
	size_t i;
	(void)ctx;
	must(sock >= 0 && sock < nsockets && n > 0);
	for (i = 0; i < n; i++)
		sum = (uint8_t)(sum + ((const uint8_t *)p)[i]);
	return b == 255 ? IOTT_FAILED : b == 254 ? IOTT_AGAIN : b == 253 ? 1 : (long)n;
}

/* The first answer is a good one, so that there is something behind it to find. */
static const char answer[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\nSec-WebSocket-Protocol: iottunnel.v1\r\n\r\n";
static size_t answered[SOCKETS];

static long net_recv(void *ctx, int sock, void *p, size_t n) {
	uint8_t *out = p, b;
	size_t i;
	(void)ctx;
	must(sock >= 0 && sock < nsockets && n > 0);
	if (answered[sock % SOCKETS] < sizeof answer - 1) {
		for (i = 0; i < n && answered[sock % SOCKETS] < sizeof answer - 1; i++)
			out[i] = (uint8_t)answer[answered[sock % SOCKETS]++];
		return (long)i;
	}
	b = byte();
	if (b == 255)
		return IOTT_FAILED;
	if (b == 254)
		return IOTT_EOF;
	for (i = 0; i < b && i < n && left > 0; i++)
		out[i] = byte();
	return (long)i;
}

static void net_close(void *ctx, int sock, int reset) {
	(void)ctx, (void)reset;
	must(sock >= 0 && sock < nsockets);
	open_sockets--;
}

static void net_random(void *ctx, void *p, size_t n) {
	(void)ctx;
	memset(p, 0, n);
}

static void on_ready(void *user, const struct iott_ready *r) {
	(void)user;
	must(strlen(r->label) <= 63 && strlen(r->hostname) <= 253 && r->heartbeat_s >= 1 && r->heartbeat_s <= 900);
}

static void on_address(void *user, uint16_t port, const char *address) {
	(void)user;
	must(port > 0 && strlen(address) <= 512);
}

static void on_down(void *user, const struct iott_end *end) {
	(void)user;
	must(end->why != NULL);
}

static int on_open(void *user, int stream, uint16_t port, const char *from) {
	uint8_t b = byte();
	(void)user;
	must(stream >= 0 && stream < STREAMS && !live[stream] && port > 0 && strlen(from) <= 64);
	if (b == 255)
		return 1;
	live[stream] = 1;
	if (b == 254) {
		live[stream] = 0;
		iott_refuse(&client, stream, "no");
	}
	return 0;
}

static size_t on_data(void *user, int stream, const uint8_t *p, size_t n) {
	uint8_t b = byte();
	(void)user, (void)p;
	must(live[stream] && n > 0);
	if (b == 255) {
		live[stream] = 0;
		iott_abort(&client, stream);
		return n;
	}
	if (b == 254)
		iott_finish(&client, stream);
	return b < 16 ? b : n + b;
}

static void on_end(void *user, int stream) {
	(void)user;
	must(live[stream]);
	if (byte() & 1)
		iott_finish(&client, stream);
}

static void on_over(void *user, int stream) {
	(void)user;
	must(live[stream]);
	live[stream] = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static const struct iott_port ports[] = {{80, IOTT_DEFAULT}, {22, IOTT_TCP}};
	static const char *const servers[] = {"ws://localhost", "wss://edge.example.com:8443"};
	static uint8_t memory[65536];
	struct iott_net net = {NULL, net_open, net_ready, net_send, net_recv, net_close, net_random};
	struct iott_config cfg;
	uint32_t now = 0, wait = 0;
	uint8_t chunk[300] = {0};
	unsigned rounds = 0;

	input = data, left = size;
	nsockets = open_sockets = 0;
	memset(live, 0, sizeof live);
	memset(answered, 0, sizeof answered);
	memset(&cfg, 0, sizeof cfg);
	cfg.net = &net;
	cfg.servers = servers, cfg.nservers = 2;
	cfg.device = "cam-17", cfg.token = "token";
	cfg.ports = ports, cfg.nports = 2;
	cfg.streams = STREAMS;
	cfg.profile = byte() & 1 ? IOTT_INLINE : IOTT_BASIC;
	cfg.buffer = 64u << (byte() % 5);
	cfg.on_ready = on_ready, cfg.on_address = on_address, cfg.on_down = on_down, cfg.on_open = on_open, cfg.on_data = on_data;
	cfg.on_end = on_end, cfg.on_abort = on_over, cfg.on_over = on_over;
	must(iott_init(&client, &cfg, memory, sizeof memory) == NULL);
	while (left > 0 && rounds++ < 2000 && wait != IOTT_OVER) {
		uint8_t b = byte();
		int stream = b & 3;
		now += b & 0x80 ? wait : b & 0x40 ? 31000 : 1;
		wait = iott_poll(&client, now);
		switch (b >> 2 & 7) {
		case 0:
		case 1: must(iott_write(&client, stream, chunk, byte()) <= 255); break;
		case 2: iott_finish(&client, stream); break;
		case 3:
			if (stream < STREAMS)
				live[stream] = 0;
			iott_abort(&client, stream);
			break;
		case 4:
			if (b == 0x13)
				iott_stop(&client);
			break;
		}
	}
	return 0;
}
