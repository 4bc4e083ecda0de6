/* names has every name stand for three addresses: one that no route leads to, one where
 * nobody listens, and this host. For the linker's --wrap=getaddrinfo. */
#define _POSIX_C_SOURCE 200809L
#include <netdb.h>
#include <stddef.h>

int __real_getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **list);
int __wrap_getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **list);

int __wrap_getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **list) {
	static const char *const addresses[] = {"2001:db8::1", "127.0.0.9", "127.0.0.1"};
	int i, err = 0;
	(void)host;
	for (i = 0; i < 3 && err == 0; i++, list = &(*list)->ai_next)
		err = __real_getaddrinfo(addresses[i], service, hints, list);
	return err;
}
