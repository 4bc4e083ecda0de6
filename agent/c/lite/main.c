/* iottunnel-agent-lite is the agent for routers and other small Unix systems: a few dozen
 * kilobytes beside the system's Mbed TLS, where the Go agent does not fit. With
 * IOTT_WITHOUT_TLS it has no TLS, for loopback and trusted networks. */
#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../iott.h"
#include "../iott_bridge.h"
#ifndef IOTT_WITHOUT_TLS
#include "../iott_mbedtls.h"
#endif
#include "../iott_posix.h"

enum { EXIT_USAGE = 2, EXIT_REFUSED = 3, EXIT_UNREACHABLE = 4, MOST = 32, FILE_MOST = 1 << 20 };

static const char usage[] =
	"usage: iottunnel-agent-lite [run] --server URL --device ID --token-file FILE --forward PORT[/KIND]=HOST:PORT ...\n"
	"\n"
	"Makes services of this device reachable through an iottunnel edge.\n"
	"\n"
	"  --server URL        wss://edge.example.com; repeat it for several edges\n"
	"  --device ID         the device's id (or IOTTUNNEL_DEVICE)\n"
	"  --token-file FILE   its secret (or IOTTUNNEL_TOKEN)\n"
	"  --forward F         22, 80=127.0.0.1:8080 or 8080/http=192.168.1.2:80; repeat it; KIND is http, https or tcp\n"
	"  --ca FILE           certificates that the edge's may come from (PEM); default: the system's\n"
	"  --profile P         basic: a connection per visitor (the default); inline: one connection for all, least memory\n"
	"  --streams N         visitors at once, 1 to 32; default 8\n"
	"  --buffer BYTES      held per visitor and direction, 64 to 32768; default 4096\n"
	"  --heartbeat TIME    such as 30s or 5m; default: the edge's\n"
	"  --max-backoff TIME  longest pause between attempts; default 30s\n"
	"  --allow-plaintext   send the secret over ws:// to other hosts than this one\n"
	"  --once              end with the first failure: status 3 if refused, 4 if unreachable\n"
	"  --version\n";

static volatile sig_atomic_t stopping;
static int once, once_status = -1;
static const char *const *tls_why;

static void on_signal(int sig) {
	(void)sig;
	stopping = 1;
}

static void say(const char *format, ...) {
	char at[32];
	time_t now = time(NULL);
	struct tm tm;
	va_list args;
	strftime(at, sizeof at, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
	fprintf(stderr, "%s ", at);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

__attribute__((noreturn)) static void fail(const char *format, ...) {
	va_list args;
	fputs("iottunnel-agent-lite: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputs(" (--help lists the options)\n", stderr);
	exit(EXIT_USAGE);
}

static void on_ready(void *user, const struct iott_ready *r) {
	(void)user;
	say("tunnel is up: %s, heartbeat %u s, %u visitors at once", r->hostname, r->heartbeat_s, r->streams);
}

static const struct iott_config *config;

static void on_address(void *user, uint16_t port, const char *address) {
	static const char *const kinds[] = {"", "http", "https", "tcp"};
	enum iott_kind kind = IOTT_TCP;
	unsigned i;
	(void)user;
	for (i = 0; i < config->nports; i++)
		if (config->ports[i].number == port && config->ports[i].kind != IOTT_DEFAULT)
			kind = config->ports[i].kind;
		else if (config->ports[i].number == port)
			kind = port == 80 ? IOTT_HTTP : port == 443 ? IOTT_HTTPS : IOTT_TCP;
	printf("%u/%s %s%s\n", (unsigned)port, kinds[kind], kind == IOTT_TCP ? "tcp://" : "", address);
	fflush(stdout);
}

static void on_down(void *user, const struct iott_end *end) {
	const char *why = end->why;
	(void)user;
	if (tls_why != NULL && *tls_why != NULL && end->status == 0 && end->code == 0)
		why = *tls_why;
	if (end->status != 0)
		say("the edge answered %d%s; next attempt in %.1f s", end->status,
		    end->status == 401 ? ": device or token is wrong" : end->status == 403 ? ": not allowed" : end->status == 409 ? ": another live device uses this id" : "",
		    end->retry_ms / 1000.0);
	else if (stopping)
		say("stopped");
	else if (end->code != 0)
		say("the edge closed the tunnel with %d; next attempt in %.1f s", end->code, end->retry_ms / 1000.0);
	else
		say("%s; next attempt in %.1f s", why, end->retry_ms / 1000.0);
	if (once)
		once_status = end->status >= 400 && end->status < 500 && end->status != 429 ? EXIT_REFUSED : EXIT_UNREACHABLE;
}

/* read_file returns a file's content, which holds what, with a zero byte behind it. */
static char *read_file(const char *option, const char *name, const char *what, size_t *len) {
	FILE *f = fopen(name, "rb");
	char *p = malloc(FILE_MOST + 1);
	if (f == NULL || p == NULL)
		fail("%s: %s: %s; it is to hold %s", option, name, strerror(errno), what);
	*len = fread(p, 1, FILE_MOST, f);
	if (ferror(f) || !feof(f))
		fail("%s: %s: cannot be read, or is larger than 1 MiB", option, name);
	fclose(f);
	p[*len] = 0;
	return p;
}

static unsigned long number(const char *option, const char *value, unsigned long from, unsigned long to) {
	char *end;
	unsigned long n = strtoul(value, &end, 10);
	if (!isdigit((unsigned char)value[0]) || *end != 0 || n < from || n > to)
		fail("%s: %s is not a number from %lu to %lu", option, value, from, to);
	return n;
}

/* seconds takes 30, 30s and 5m: the agent in Go, whose configuration may serve here, wants the unit. */
static unsigned seconds(const char *option, const char *value, unsigned long to) {
	char *end;
	unsigned long n = strtoul(value, &end, 10), unit = *end == 'm' ? 60 : 1;
	if (*end == 'm' || *end == 's')
		end++;
	if (!isdigit((unsigned char)value[0]) || *end != 0 || n < 1 || n > to / unit)
		fail("%s: %s is not a time from 1s to %lus, such as 30s or 5m", option, value, to);
	return (unsigned)(n * unit);
}

/* forward takes PORT[/KIND][=HOST:PORT] apart. */
static void forward(char *value, struct iott_port *port, struct iott_target *target) {
	static const char *const kinds[] = {"", "http", "https", "tcp"};
	char *to = strchr(value, '='), *kind, *colon, here[] = "127.0.0.1", *host = here, *service = value;
	struct addrinfo hints, *list;
	int err;
	if (to != NULL)
		*to++ = 0;
	kind = strchr(value, '/');
	if (kind != NULL) {
		*kind++ = 0;
		for (port->kind = IOTT_TCP; port->kind > IOTT_DEFAULT && strcmp(kinds[port->kind], kind) != 0; port->kind--)
			;
		if (port->kind == IOTT_DEFAULT)
			fail("--forward: %s is no kind: http, https or tcp", kind);
	}
	port->number = (uint16_t)number("--forward", value, 1, 65535);
	if (to != NULL) {
		colon = strrchr(to, ':');
		if (colon == NULL)
			fail("--forward: %s is not HOST:PORT", to);
		*colon = 0;
		service = colon + 1;
		host = to;
		if (*host == '[' && host[strlen(host) - 1] == ']')
			host++, host[strlen(host) - 1] = 0;
	}
	memset(&hints, 0, sizeof hints);
	hints.ai_socktype = SOCK_STREAM;
	number("--forward", service, 1, 65535);
	if ((err = getaddrinfo(host, service, &hints, &list)) != 0)
		fail("--forward: %s: %s", host, gai_strerror(err));
	target->port = port->number;
	memcpy(&target->addr, list->ai_addr, list->ai_addrlen);
	target->addr_len = list->ai_addrlen;
	freeaddrinfo(list);
}

#ifndef IOTT_WITHOUT_TLS
static const char authorities[] = "the certificate, in PEM, of the authority that signs the edge's";

static char *system_ca(size_t *len) {
	static const char *const files[] = {"/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt"};
	size_t i;
	FILE *f;
	for (i = 0; i < sizeof files / sizeof *files; i++)
		if ((f = fopen(files[i], "rb")) != NULL) {
			fclose(f);
			return read_file("--ca", files[i], authorities, len);
		}
	fail("--ca: this system has no certificates of its own: install ca-bundle, or name a file");
}

/* secure makes net speak TLS where a server's URL asks for it. */
static void secure(struct iott_net *net, const struct iott_net *plain, const char *ca_file) {
	static struct iott_mbedtls tls;
	size_t len;
	char *ca = ca_file != NULL ? read_file("--ca", ca_file, authorities, &len) : system_ca(&len);
	int err = iott_mbedtls_init(&tls, net, plain, (const unsigned char *)ca, len + 1);
	free(ca);
	if (err != 0)
		fail("--ca: these are no certificates (Mbed TLS says -0x%x)", (unsigned)-err);
	tls_why = &tls.why;
}
#else
static void secure(struct iott_net *net, const struct iott_net *plain, const char *ca_file) {
	(void)net, (void)plain, (void)ca_file;
	fail("--server: this build has no TLS: ws:// only");
}
#endif

static void loop(struct iott *client, struct iott_bridge *bridge, struct iott_posix *posix) {
	struct pollfd fds[IOTT_POSIX_SOCKETS + IOTT_BRIDGE_STREAMS];
	for (;;) {
		uint32_t now = iott_posix_now(), wait;
		int n;
		iott_bridge_poll(bridge, now);
		wait = iott_poll(client, now);
		if (wait == IOTT_OVER || (once_status >= 0 && !stopping))
			return;
		if (stopping)
			iott_stop(client), wait = wait < 10 ? wait : 10;
		n = iott_posix_fds(posix, fds, IOTT_POSIX_SOCKETS);
		n += iott_bridge_fds(bridge, fds + n, IOTT_BRIDGE_STREAMS);
		poll(fds, (nfds_t)n, (int)wait);
	}
}

/* refuse says what iott_init has found by the name of the option: it names settings of struct iott_config. */
__attribute__((noreturn)) static void refuse(const char *bad, const char *token_file) {
	if (strstr(bad, "allow_plaintext") != NULL)
		fail("--server: ws:// sends the token in clear: use wss://, or give --allow-plaintext on a network that you trust");
	if (strncmp(bad, "servers: ", 9) == 0)
		fail("--server: %s", bad + 9);
	if (strncmp(bad, "token: ", 7) == 0)
		fail("%s: %s", token_file != NULL ? "--token-file" : "IOTTUNNEL_TOKEN", bad + 7);
	fail("--%s", bad);
}

int main(int argc, char **argv) {
	static struct iott client;
	static struct iott_posix posix;
	static struct iott_bridge bridge;
	static struct iott_port ports[MOST];
	static struct iott_target targets[MOST];
	static const char *servers[MOST];
	struct iott_config cfg;
	struct iott_net plain, net;
	struct sigaction action;
	const char *ca_file = NULL, *token_file = NULL, *bad;
	char *token;
	size_t len;
	void *memory;
	int i, with_tls = 0;

	memset(&cfg, 0, sizeof cfg);
	cfg.net = &net;
	cfg.servers = servers;
	cfg.ports = ports;
	cfg.device = getenv("IOTTUNNEL_DEVICE");
	cfg.streams = 8;
	cfg.buffer = 4096;
	for (i = argc > 1 && strcmp(argv[1], "run") == 0 ? 2 : 1; i < argc; i++) {
		const char *option = argv[i];
		char *value = strchr(argv[i], '=');
		if (strcmp(option, "--help") == 0 || strcmp(option, "-h") == 0)
			return fputs(usage, stdout) < 0;
		if (strcmp(option, "--version") == 0)
			return puts("iottunnel-agent-lite, protocol v1") < 0;
		if (strcmp(option, "--allow-plaintext") == 0) {
			cfg.allow_plaintext = 1;
			continue;
		}
		if (strcmp(option, "--once") == 0) {
			once = 1;
			continue;
		}
		if (strncmp(option, "--", 2) == 0 && value != NULL)
			*value++ = 0;
		else if (strncmp(option, "--", 2) == 0 && i + 1 < argc)
			value = argv[++i];
		else
			fail(strncmp(option, "--", 2) == 0 ? "%s wants a value" : "%s is no option", option);
		if (strcmp(option, "--server") == 0 && cfg.nservers < MOST) {
			with_tls |= strncmp(value, "wss:", 4) == 0;
			servers[cfg.nservers++] = value;
		} else if (strcmp(option, "--device") == 0) {
			cfg.device = value;
		} else if (strcmp(option, "--token-file") == 0) {
			token_file = value;
		} else if (strcmp(option, "--forward") == 0 && cfg.nports < MOST) {
			forward(value, &ports[cfg.nports], &targets[cfg.nports]);
			cfg.nports++;
		} else if (strcmp(option, "--ca") == 0) {
			ca_file = value;
		} else if (strcmp(option, "--profile") == 0) {
			if (strcmp(value, "basic") != 0 && strcmp(value, "inline") != 0)
				fail("--profile: %s is neither basic nor inline", value);
			cfg.profile = value[0] == 'i' ? IOTT_INLINE : IOTT_BASIC;
		} else if (strcmp(option, "--streams") == 0) {
			cfg.streams = (unsigned)number(option, value, 1, 32);
		} else if (strcmp(option, "--buffer") == 0) {
			cfg.buffer = (unsigned)number(option, value, 64, 32768);
		} else if (strcmp(option, "--heartbeat") == 0) {
			cfg.heartbeat_s = seconds(option, value, 900);
		} else if (strcmp(option, "--max-backoff") == 0) {
			cfg.max_backoff_ms = (uint32_t)seconds(option, value, 3600) * 1000;
		} else {
			fail("%s: no such option, or too often", option);
		}
	}
	if (cfg.nservers == 0 || cfg.device == NULL || cfg.nports == 0)
		fail("--server, --device and --forward are needed");
	token = token_file != NULL ? read_file("--token-file", token_file, "the device's secret, as the edge's operator gave it", &len) : getenv("IOTTUNNEL_TOKEN");
	if (token == NULL)
		fail("--token-file or IOTTUNNEL_TOKEN is needed");
	for (len = strlen(token); len > 0 && isspace((unsigned char)token[len - 1]); len--)
		token[len - 1] = 0;
	cfg.token = token;

	iott_posix_net(&plain, &posix);
	net = plain;
	if (with_tls)
		secure(&net, &plain, ca_file);
	iott_bridge_init(&bridge, &client, &cfg, targets, cfg.nports);
	cfg.on_ready = on_ready;
	cfg.on_address = on_address;
	cfg.on_down = on_down;
	config = &cfg;
	memory = malloc(iott_memory(&cfg));
	if ((bad = iott_init(&client, &cfg, memory, iott_memory(&cfg))) != NULL)
		refuse(bad, token_file);

	memset(&action, 0, sizeof action);
	action.sa_handler = on_signal;
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	loop(&client, &bridge, &posix);
	free(memory);
	if (token_file != NULL)
		free(token);
	return once_status >= 0 ? once_status : 0;
}
