/* The same device over TLS, on POSIX: tls SERVER DEVICE TOKEN CA-FILE. */
#include <poll.h>

#include "../iott_mbedtls.h"
#include "../iott_posix.h"
#include "page.h"

int main(int argc, char **argv) {
	static struct iott client;
	static struct iott_posix posix;
	static struct iott_mbedtls tls;
	static uint64_t memory[1024];       /* 8 KiB: for two streams it is enough */
	static unsigned char ca[16 * 1024]; /* a device has it in flash, in DER */
	struct pollfd fds[IOTT_POSIX_SOCKETS];
	struct iott_config cfg;
	struct iott_net plain, net;
	struct page page;
	const char *bad;
	FILE *f;

	if (argc != 5 || (f = fopen(argv[4], "rb")) == NULL || fread(ca, 1, sizeof ca - 1, f) == 0) {
		fputs("usage: tls SERVER DEVICE TOKEN CA-FILE\n", stderr);
		return 2;
	}
	fclose(f);
	iott_posix_net(&plain, &posix);
	if (iott_mbedtls_init(&tls, &net, &plain, ca, strlen((char *)ca) + 1) != 0) {
		fputs("the file has no certificates\n", stderr);
		return 2;
	}
	page_config(&cfg, &page, &client);
	cfg.net = &net;
	cfg.servers = (const char *const *)&argv[1], cfg.nservers = 1;
	cfg.device = argv[2], cfg.token = argv[3];
	if ((bad = iott_init(&client, &cfg, memory, sizeof memory)) != NULL) {
		fprintf(stderr, "%s\n", bad);
		return 2;
	}
	for (;;) {
		uint32_t wait = iott_poll(&client, iott_posix_now());
		poll(fds, (nfds_t)iott_posix_fds(&posix, fds, IOTT_POSIX_SOCKETS), (int)wait);
	}
}
