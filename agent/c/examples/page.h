/* page answers HTTP by itself, without a socket: each stream is a visitor's request, and
 * gets one page. It is the program's side of an iott client, for whichever port. */
#ifndef PAGE_H
#define PAGE_H

#include <stdio.h>
#include <string.h>

#include "../iott.h"

enum { PAGE_STREAMS = 2 };

struct page {
	struct iott *client;
	struct page_visitor {
		unsigned char newlines; /* of the blank line that ends a request's header */
		unsigned char answering;
		size_t at; /* bytes of the answer that were written */
	} visitors[PAGE_STREAMS];
};

static const char page_answer[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 21\r\nConnection: close\r\n\r\n"
                                  "21.5 degrees Celsius\n";

static void page_write(struct page *p, int stream) {
	struct page_visitor *v = &p->visitors[stream];
	size_t left = sizeof page_answer - 1 - v->at;
	if (!v->answering)
		return;
	v->at += iott_write(p->client, stream, page_answer + v->at, left);
	if (v->at == sizeof page_answer - 1) {
		v->answering = 0;
		iott_finish(p->client, stream);
	}
}

static int page_open(void *user, int stream, uint16_t port, const char *from) {
	struct page *p = user;
	(void)port, (void)from;
	memset(&p->visitors[stream], 0, sizeof p->visitors[stream]);
	return 0;
}

static size_t page_data(void *user, int stream, const uint8_t *b, size_t n) {
	struct page *p = user;
	struct page_visitor *v = &p->visitors[stream];
	size_t i;
	for (i = 0; i < n && v->newlines < 2; i++)
		if (b[i] == '\n' && ++v->newlines == 2)
			v->answering = 1;
		else if (b[i] != '\n' && b[i] != '\r')
			v->newlines = 0;
	page_write(p, stream);
	return n; /* of a body too, which nobody reads */
}

static void page_end(void *user, int stream) {
	struct page *p = user;
	if (p->visitors[stream].newlines < 2)
		iott_abort(p->client, stream); /* half a request */
}

static void page_abort(void *user, int stream) { ((struct page *)user)->visitors[stream].answering = 0; }

static void page_writable(void *user, int stream) { page_write(user, stream); }

static void page_address(void *user, uint16_t port, const char *address) {
	(void)user;
	printf("%u/http %s\n", (unsigned)port, address);
	fflush(stdout);
}

/* page_config fills in all but net, servers, device and token. */
static void page_config(struct iott_config *cfg, struct page *p, struct iott *client) {
	static const struct iott_port ports[] = {{80, IOTT_HTTP}};
	memset(p, 0, sizeof *p);
	memset(cfg, 0, sizeof *cfg);
	p->client = client;
	cfg->ports = ports, cfg->nports = 1;
	cfg->profile = IOTT_INLINE;
	cfg->streams = PAGE_STREAMS;
	cfg->user = p;
	cfg->on_open = page_open, cfg->on_data = page_data, cfg->on_end = page_end, cfg->on_abort = page_abort;
	cfg->on_writable = page_writable, cfg->on_address = page_address;
}

#endif
