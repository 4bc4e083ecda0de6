#include "iott_mbedtls.h"

#include <string.h>

#include <mbedtls/net_sockets.h>
#if MBEDTLS_VERSION_NUMBER >= 0x03000000 && defined(MBEDTLS_SSL_PROTO_TLS1_3)
#include <psa/crypto.h>
#endif

#ifdef MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET
#define TICKET MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET
#else
#define TICKET MBEDTLS_ERR_SSL_TIMEOUT /* of DTLS: never */
#endif

static int entropy(void *ctx, unsigned char *p, size_t n) {
	const struct iott_net *plain = ctx;
	plain->random(plain->ctx, p, n);
	return 0;
}

static int bio_send(void *ctx, const unsigned char *p, size_t n) {
	struct iott_mbedtls_socket *s = ctx;
	long sent = s->owner->plain->send(s->owner->plain->ctx, s->sock, p, n);
	return sent > 0 ? (int)sent : sent == IOTT_AGAIN ? MBEDTLS_ERR_SSL_WANT_WRITE : MBEDTLS_ERR_NET_CONN_RESET;
}

static int bio_recv(void *ctx, unsigned char *p, size_t n) {
	struct iott_mbedtls_socket *s = ctx;
	long got = s->owner->plain->recv(s->owner->plain->ctx, s->sock, p, n);
	return got > 0 ? (int)got : got == IOTT_AGAIN ? MBEDTLS_ERR_SSL_WANT_READ : got == IOTT_EOF ? 0 : MBEDTLS_ERR_NET_CONN_RESET;
}

static int open_socket(void *ctx, const char *host, uint16_t port, int tls) {
	struct iott_mbedtls *t = ctx;
	struct iott_mbedtls_socket *s;
	int i;
	for (i = 0; i < IOTT_MBEDTLS_SOCKETS && t->sockets[i].sock >= 0; i++)
		;
	if (i == IOTT_MBEDTLS_SOCKETS)
		return IOTT_FAILED;
	s = &t->sockets[i];
	memset(s, 0, sizeof *s);
	s->owner = t;
	s->host = host;
	s->sock = -1;
	if (tls) {
		s->tls = 1;
		mbedtls_ssl_init(&s->ssl);
		if (mbedtls_ssl_setup(&s->ssl, &t->config) != 0 || mbedtls_ssl_set_hostname(&s->ssl, host) != 0) {
			t->why = "no memory for TLS";
			mbedtls_ssl_free(&s->ssl);
			return IOTT_FAILED;
		}
		if (t->has_session && strcmp(t->session_host, host) == 0)
			mbedtls_ssl_set_session(&s->ssl, &t->session); /* at worst it is not resumed */
		mbedtls_ssl_set_bio(&s->ssl, s, bio_send, bio_recv, NULL);
	}
	s->sock = t->plain->open(t->plain->ctx, host, port, 0);
	if (s->sock < 0) {
		if (tls)
			mbedtls_ssl_free(&s->ssl);
		s->sock = -1;
		return IOTT_FAILED;
	}
	return i;
}

static int again(int result) {
	return result == MBEDTLS_ERR_SSL_WANT_READ || result == MBEDTLS_ERR_SSL_WANT_WRITE;
}

static void keep_session(struct iott_mbedtls *t, struct iott_mbedtls_socket *s) {
	if (strlen(s->host) >= sizeof t->session_host)
		return;
	mbedtls_ssl_session_free(&t->session);
	mbedtls_ssl_session_init(&t->session);
	t->has_session = mbedtls_ssl_get_session(&s->ssl, &t->session) == 0;
	strcpy(t->session_host, s->host);
}

static int ready(void *ctx, int sock) {
	struct iott_mbedtls *t = ctx;
	struct iott_mbedtls_socket *s = &t->sockets[sock];
	int result;
	if (!s->connected) {
		result = t->plain->ready(t->plain->ctx, s->sock);
		if (result <= 0) {
			if (result < 0)
				t->why = "no connection";
			return result;
		}
		s->connected = 1;
	}
	if (!s->tls || s->done)
		return 1;
	result = mbedtls_ssl_handshake(&s->ssl);
	if (again(result))
		return 0;
	if (result != 0) {
		t->why = result == MBEDTLS_ERR_X509_CERT_VERIFY_FAILED ? "the edge's certificate is not trusted: wrong CA, name or clock" : "TLS handshake failed";
		t->has_session = 0;
		return IOTT_FAILED;
	}
	s->done = 1;
	keep_session(t, s);
	return 1;
}

static long send_some(void *ctx, int sock, const void *p, size_t n) {
	struct iott_mbedtls *t = ctx;
	struct iott_mbedtls_socket *s = &t->sockets[sock];
	int sent;
	if (!s->tls)
		return t->plain->send(t->plain->ctx, s->sock, p, n);
	if (s->unsent > 0 && s->unsent < n)
		n = s->unsent; /* its record is made already: Mbed TLS wants the same call again */
	sent = mbedtls_ssl_write(&s->ssl, p, n);
	s->unsent = again(sent) ? n : 0;
	return sent > 0 ? sent : again(sent) ? IOTT_AGAIN : IOTT_FAILED;
}

static long recv_some(void *ctx, int sock, void *p, size_t n) {
	struct iott_mbedtls *t = ctx;
	struct iott_mbedtls_socket *s = &t->sockets[sock];
	int got;
	if (!s->tls)
		return t->plain->recv(t->plain->ctx, s->sock, p, n);
	do
		got = mbedtls_ssl_read(&s->ssl, p, n);
	while (got == TICKET); /* of TLS 1.3, ahead of what it has sent */
	if (got > 0)
		return got;
	if (again(got))
		return IOTT_AGAIN;
	return got == 0 || got == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY ? IOTT_EOF : IOTT_FAILED;
}

static void close_socket(void *ctx, int sock, int reset) {
	struct iott_mbedtls *t = ctx;
	struct iott_mbedtls_socket *s = &t->sockets[sock];
	if (s->tls) {
		if (s->done && !reset)
			mbedtls_ssl_close_notify(&s->ssl); /* as far as there is room */
		mbedtls_ssl_free(&s->ssl);
	}
	t->plain->close(t->plain->ctx, s->sock, reset);
	s->sock = -1;
}

static void random_bytes(void *ctx, void *p, size_t n) {
	struct iott_mbedtls *t = ctx;
	t->plain->random(t->plain->ctx, p, n);
}

int iott_mbedtls_init(struct iott_mbedtls *t, struct iott_net *net, const struct iott_net *plain, const unsigned char *ca, size_t ca_len) {
	static const char *protocols[] = {"http/1.1", NULL};
	int result, i;
	memset(t, 0, sizeof *t);
	t->plain = plain;
	for (i = 0; i < IOTT_MBEDTLS_SOCKETS; i++)
		t->sockets[i].sock = -1;
	mbedtls_ssl_config_init(&t->config);
	mbedtls_x509_crt_init(&t->ca);
	mbedtls_ctr_drbg_init(&t->random);
	mbedtls_ssl_session_init(&t->session);
	if ((result = mbedtls_ctr_drbg_seed(&t->random, entropy, (void *)plain, NULL, 0)) != 0 ||
	    (result = mbedtls_x509_crt_parse(&t->ca, ca, ca_len)) < 0 ||
	    (result = mbedtls_ssl_config_defaults(&t->config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT)) != 0)
		return result;
	mbedtls_ssl_conf_authmode(&t->config, MBEDTLS_SSL_VERIFY_REQUIRED);
	mbedtls_ssl_conf_ca_chain(&t->config, &t->ca, NULL);
	mbedtls_ssl_conf_rng(&t->config, mbedtls_ctr_drbg_random, &t->random);
#if MBEDTLS_VERSION_NUMBER < 0x03000000
	mbedtls_ssl_conf_min_version(&t->config, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_3);
#elif defined(MBEDTLS_SSL_PROTO_TLS1_3)
	if (psa_crypto_init() != PSA_SUCCESS)
		return MBEDTLS_ERR_SSL_HW_ACCEL_FAILED;
#endif
	if ((result = mbedtls_ssl_conf_alpn_protocols(&t->config, protocols)) != 0)
		return result;
	net->ctx = t;
	net->open = open_socket;
	net->ready = ready;
	net->send = send_some;
	net->recv = recv_some;
	net->close = close_socket;
	net->random = random_bytes;
	return 0;
}

void iott_mbedtls_free(struct iott_mbedtls *t) {
	mbedtls_ssl_session_free(&t->session);
	mbedtls_ssl_config_free(&t->config);
	mbedtls_x509_crt_free(&t->ca);
	mbedtls_ctr_drbg_free(&t->random);
}
