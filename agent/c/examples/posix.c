/* A device with a page of its own, on POSIX: posix SERVER DEVICE TOKEN. */
#include <poll.h>

#include "../iott_posix.h"
#include "page.h"

int main(int argc, char **argv) {
	static struct iott client;
	static struct iott_posix posix;
	static uint64_t memory[1024]; /* 8 KiB: for two streams it is enough */
	struct pollfd fds[IOTT_POSIX_SOCKETS];
	struct iott_config cfg;
	struct iott_net net;
	struct page page;
	const char *bad;

	if (argc != 4) {
		fputs("usage: posix SERVER DEVICE TOKEN\n", stderr);
		return 2;
	}
	iott_posix_net(&net, &posix);
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
