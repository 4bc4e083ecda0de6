/* iott_mbedtls speaks TLS for an iott client, with Mbed TLS 2.28 or 3.6, over any port: it is
 * a port itself, whose plain sockets are another one's. */
#ifndef IOTT_MBEDTLS_H
#define IOTT_MBEDTLS_H

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/ssl.h>
#include <mbedtls/x509_crt.h>

#include "iott.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How many sockets may speak TLS at once: the control socket, and in the profile basic one
 * for each stream. A microcontroller has it smaller. */
#ifndef IOTT_MBEDTLS_SOCKETS
#define IOTT_MBEDTLS_SOCKETS 33
#endif

struct iott_mbedtls {
	const struct iott_net *plain;
	mbedtls_ssl_config config;
	mbedtls_x509_crt ca;
	mbedtls_ctr_drbg_context random;
	mbedtls_ssl_session session; /* of the control socket: others resume it */
	char session_host[254];
	int has_session;
	const char *why; /* the last failure, for people */
	struct iott_mbedtls_socket {
		struct iott_mbedtls *owner;
		const char *host; /* of iott_net's open */
		int sock; /* of plain; -1: free */
		unsigned char tls, connected, done;
		size_t unsent; /* bytes of a write that has to be made again */
		mbedtls_ssl_context ssl;
	} sockets[IOTT_MBEDTLS_SOCKETS];
};

/* iott_mbedtls_init makes net use t, which uses plain. ca are the certificates that an edge's
 * may come from, in PEM (with its final zero byte, which counts) or DER; without them no edge
 * can be trusted. It returns 0, or an error of Mbed TLS. */
int iott_mbedtls_init(struct iott_mbedtls *t, struct iott_net *net, const struct iott_net *plain, const unsigned char *ca, size_t ca_len);

/* iott_mbedtls_free gives back what t holds. Its sockets are closed by then. */
void iott_mbedtls_free(struct iott_mbedtls *t);

#ifdef __cplusplus
}
#endif

#endif
