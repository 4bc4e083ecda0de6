/* puppet is an iott client whose system, clock and program are at the other end of a pipe:
 * a test reads what the client does, line by line, and says what happens to it. Its program
 * may be the bridge instead, to a service on this machine. Its random bytes are those of the
 * examples in docs/protocol.md §13. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../iott.h"
#include "../iott_bridge.h"

enum { LINE = 1 << 20 };

static struct iott client;
static struct {
	uint8_t *in;
	size_t len;
	int ready, eof;
} sockets[1024];
static int nsockets;
static size_t take = (size_t)-1, room = (size_t)-1;
static int refuse;
static struct iott_bridge bridge;
static struct iott_target target;

static void hex(const uint8_t *p, size_t n) {
	while (n-- > 0)
		printf("%02x", *p++);
}

static uint8_t *unhex(const char *s, size_t *n) {
	uint8_t *p = malloc(strlen(s) / 2 + 1);
	unsigned byte;
	for (*n = 0; sscanf(s, "%2x", &byte) == 1; s += 2)
		p[(*n)++] = (uint8_t)byte;
	return p;
}

static int net_open(void *ctx, const char *host, uint16_t port, int tls) {
	(void)ctx;
	memset(&sockets[nsockets], 0, sizeof sockets[0]);
	printf("dial %d %s %u %d\n", nsockets, host, (unsigned)port, tls);
	return nsockets++;
}

static int net_ready(void *ctx, int sock) {
	(void)ctx;
	return sockets[sock].ready;
}

static long net_send(void *ctx, int sock, const void *p, size_t n) {
	(void)ctx;
	if (sockets[sock].eof == 2)
		return IOTT_FAILED;
	if (n > room)
		n = room;
	if (n == 0)
		return IOTT_AGAIN;
	if (room != (size_t)-1)
		room -= n;
	printf("sent %d ", sock);
	hex(p, n);
	putchar('\n');
	return (long)n;
}

static long net_recv(void *ctx, int sock, void *p, size_t n) {
	(void)ctx;
	if (sockets[sock].len == 0)
		return sockets[sock].eof == 2 ? IOTT_FAILED : sockets[sock].eof ? IOTT_EOF : IOTT_AGAIN;
	if (n > sockets[sock].len)
		n = sockets[sock].len;
	memcpy(p, sockets[sock].in, n);
	memmove(sockets[sock].in, sockets[sock].in + n, sockets[sock].len -= n);
	return (long)n;
}

static void net_close(void *ctx, int sock, int reset) {
	(void)ctx;
	free(sockets[sock].in);
	sockets[sock].in = NULL;
	sockets[sock].len = 0;
	printf("closed %d %d\n", sock, reset);
}

static void net_random(void *ctx, void *p, size_t n) {
	static const uint8_t mask[] = {0x37, 0xfa, 0x21, 0x3d};
	static int drawn;
	uint8_t *b = p;
	size_t i;
	(void)ctx;
	if (n == 16 && drawn++ > 0) { /* the first 16 bytes are the instance */
		memcpy(p, "the sample nonce", 16);
		return;
	}
	for (i = 0; i < n; i++)
		b[i] = n == 16 ? (uint8_t)(i * 17) : mask[i & 3];
}

static void on_ready(void *user, const struct iott_ready *r) {
	(void)user;
	printf("ready %s %s %u %u\n", r->label, r->hostname, r->heartbeat_s, r->streams);
}

static void on_address(void *user, uint16_t port, const char *address) {
	(void)user;
	printf("address %u %s\n", (unsigned)port, address);
}

static void on_down(void *user, const struct iott_end *end) {
	(void)user;
	printf("down %d %d %lu %s\n", end->status, end->code, (unsigned long)end->retry_ms, end->why);
}

static int on_open(void *user, int stream, uint16_t port, const char *from) {
	(void)user;
	printf("open %d %u %s\n", stream, (unsigned)port, from);
	if (refuse == 2)
		iott_abort(&client, stream);
	return refuse;
}

static size_t on_data(void *user, int stream, const uint8_t *p, size_t n) {
	(void)user;
	if (n > take)
		n = take;
	if (take != (size_t)-1)
		take -= n;
	if (n > 0) {
		printf("data %d ", stream);
		hex(p, n);
		putchar('\n');
	}
	return n;
}

static void on_end(void *user, int stream) {
	(void)user;
	printf("end %d\n", stream);
}

static void on_abort(void *user, int stream) {
	(void)user;
	printf("abort %d\n", stream);
}

static void on_over(void *user, int stream) {
	(void)user;
	printf("over %d\n", stream);
}

static void on_writable(void *user, int stream) {
	(void)user;
	printf("writable %d\n", stream);
}

/* serve PORT LOCAL: the program is a bridge, which has a service of this machine behind a port. */
static void serve(unsigned port, unsigned local) {
	struct sockaddr_in *addr = (struct sockaddr_in *)&target.addr;
	target.port = (uint16_t)port;
	target.addr_len = sizeof *addr;
	addr->sin_family = AF_INET;
	addr->sin_port = htons((uint16_t)local);
	addr->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
}

/* init PROFILE STREAMS BUFFER HEARTBEAT SERVER[,SERVER...] DEVICE TOKEN PORT[/KIND]... */
static void init(char *args) {
	static struct iott_config cfg;
	static struct iott_net net;
	static struct iott_port ports[32];
	static const char *servers[4];
	static char copy[4096];
	const char *bad;
	char *word;
	static void *mem;
	strncpy(copy, args, sizeof copy - 1);
	cfg.profile = strcmp(strtok(copy, " "), "inline") == 0 ? IOTT_INLINE : IOTT_BASIC;
	cfg.streams = (unsigned)atoi(strtok(NULL, " "));
	cfg.buffer = (unsigned)atoi(strtok(NULL, " "));
	cfg.heartbeat_s = (unsigned)atoi(strtok(NULL, " "));
	for (word = strtok(NULL, " "); word != NULL && cfg.nservers < 4; cfg.nservers++) {
		servers[cfg.nservers] = word;
		if ((word = strchr(word, ',')) != NULL)
			*word++ = 0;
	}
	cfg.servers = servers;
	cfg.device = strtok(NULL, " ");
	cfg.token = strtok(NULL, " ");
	for (; (word = strtok(NULL, " ")) != NULL; cfg.nports++) {
		ports[cfg.nports].number = (uint16_t)atoi(word);
		ports[cfg.nports].kind = strstr(word, "/https") ? IOTT_HTTPS : strstr(word, "/http") ? IOTT_HTTP : strstr(word, "/tcp") ? IOTT_TCP : IOTT_DEFAULT;
	}
	cfg.ports = ports;
	net.open = net_open, net.ready = net_ready, net.send = net_send, net.recv = net_recv, net.close = net_close, net.random = net_random;
	cfg.net = &net;
	cfg.on_ready = on_ready, cfg.on_address = on_address, cfg.on_down = on_down, cfg.on_open = on_open, cfg.on_data = on_data;
	cfg.on_end = on_end, cfg.on_abort = on_abort, cfg.on_over = on_over, cfg.on_writable = on_writable;
	if (target.port)
		iott_bridge_init(&bridge, &client, &cfg, &target, 1);
	mem = malloc(iott_memory(&cfg) ? iott_memory(&cfg) : 1);
	bad = iott_init(&client, &cfg, mem, iott_memory(&cfg));
	printf("init %lu %s\n", (unsigned long)(sizeof client + iott_memory(&cfg)), bad ? bad : "ok");
}

int main(void) {
	static char line[LINE];
	while (fgets(line, sizeof line, stdin) != NULL) {
		char *arg, *rest;
		size_t n;
		long a;
		line[strcspn(line, "\n")] = 0;
		arg = strchr(line, ' ');
		arg = arg ? (*arg = 0, arg + 1) : line + strlen(line);
		a = strtol(arg, &rest, 10);
		while (*rest == ' ')
			rest++;
		if (strcmp(line, "init") == 0)
			init(arg);
		else if (strcmp(line, "serve") == 0)
			serve((unsigned)a, (unsigned)atoi(rest));
		else if (strcmp(line, "poll") == 0) {
			uint32_t now = (uint32_t)strtoul(arg, NULL, 10);
			if (target.port)
				iott_bridge_poll(&bridge, now);
			printf("wait %lu\n", (unsigned long)iott_poll(&client, now));
		} else if (strcmp(line, "connected") == 0)
			sockets[a].ready = atoi(rest);
		else if (strcmp(line, "feed") == 0) {
			uint8_t *p = unhex(rest, &n);
			sockets[a].in = realloc(sockets[a].in, sockets[a].len + n + 1);
			memcpy(sockets[a].in + sockets[a].len, p, n);
			sockets[a].len += n;
			free(p);
		} else if (strcmp(line, "eof") == 0)
			sockets[a].eof = 1;
		else if (strcmp(line, "broken") == 0)
			sockets[a].eof = 2;
		else if (strcmp(line, "write") == 0) {
			uint8_t *p = unhex(rest, &n);
			printf("wrote %lu\n", (unsigned long)iott_write(&client, (int)a, p, n));
			free(p);
		} else if (strcmp(line, "finish") == 0)
			iott_finish(&client, (int)a);
		else if (strcmp(line, "cut") == 0)
			iott_abort(&client, (int)a);
		else if (strcmp(line, "refuse") == 0) {
			static char reason[128];
			strncpy(reason, rest, sizeof reason - 1);
			iott_refuse(&client, (int)a, reason);
		} else if (strcmp(line, "take") == 0)
			take = (size_t)a;
		else if (strcmp(line, "room") == 0)
			room = (size_t)a;
		else if (strcmp(line, "deny") == 0)
			refuse = (int)a;
		else if (strcmp(line, "stop") == 0)
			iott_stop(&client);
		puts(".");
		fflush(stdout);
	}
	return 0;
}
