/* The same device on lwIP, behind the tap device that PRECONFIGURED_TAPIF names:
 * lwip SERVER DEVICE TOKEN ADDRESS NETMASK GATEWAY. */
#define _GNU_SOURCE /* of lwIP's Unix port */
#include <unistd.h>

#include <lwip/netif.h>
#include <lwip/sys.h>
#include <lwip/tcpip.h>
#include <netif/tapif.h>

#include "../iott_lwip.h"
#include "page.h"

static void random_bytes(void *p, size_t n) {
	if (getentropy(p, n) != 0)
		_exit(1);
}

static void started(void *arg) { sys_sem_signal(arg); }

int main(int argc, char **argv) {
	static struct iott client;
	static struct iott_lwip lwip;
	static struct netif tap;
	static uint64_t memory[1024];
	struct iott_config cfg;
	struct iott_net net;
	struct page page;
	ip4_addr_t address, mask, gateway;
	const char *bad;
	sys_sem_t up;

	if (argc != 7 || !ip4addr_aton(argv[4], &address) || !ip4addr_aton(argv[5], &mask) || !ip4addr_aton(argv[6], &gateway)) {
		fputs("usage: lwip SERVER DEVICE TOKEN ADDRESS NETMASK GATEWAY\n", stderr);
		return 2;
	}
	sys_sem_new(&up, 0);
	tcpip_init(started, &up);
	sys_sem_wait(&up);
	LOCK_TCPIP_CORE();
	netif_add(&tap, &address, &mask, &gateway, NULL, tapif_init, tcpip_input);
	netif_set_default(&tap);
	netif_set_up(&tap);
	netif_set_link_up(&tap);
	UNLOCK_TCPIP_CORE();

	iott_lwip_net(&net, &lwip, random_bytes);
	page_config(&cfg, &page, &client);
	cfg.net = &net;
	cfg.servers = (const char *const *)&argv[1], cfg.nservers = 1;
	cfg.allow_plaintext = 1; /* in a laboratory only: a device puts iott_mbedtls between */
	cfg.device = argv[2], cfg.token = argv[3];
	if ((bad = iott_init(&client, &cfg, memory, sizeof memory)) != NULL) {
		fprintf(stderr, "%s\n", bad);
		return 2;
	}
	for (;;) {
		uint32_t wait;
		LOCK_TCPIP_CORE();
		wait = iott_poll(&client, sys_now());
		UNLOCK_TCPIP_CORE();
		usleep(1000 * (wait < 5 ? wait : 5));
	}
}
