package caddymodule

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
)

// visitorBody is the body of an HTTP/1 request. One goroutine may read while another
// closes.
//
// net/http gives no more than one way to read it: what is read while the answer is
// on its way needs full duplex. Else net/http itself reads the rest, or some of it,
// at the head of the answer, and tells who reads then that the body has ended.
type visitorBody struct {
	io.ReadCloser
	held   bool        // its sender waits for a 100 (RFC 9110 §10.1.1): net/http sends it at the first Read
	asked  atomic.Bool // it was read
	ended  atomic.Bool // all of it was
	closed atomic.Bool
	duplex bool
}

func (b *visitorBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	b.asked.Store(true)
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.ended.Store(true)
	}
	return n, err
}

// Close does not wait. net/http's own Close reads on, and waits for a Read under way:
// that is for the server to do, once the answer has been sent.
func (b *visitorBody) Close() error {
	b.closed.Store(true)
	return nil
}

// stream lets the body be read while the answer is written.
func (b *visitorBody) stream(w http.ResponseWriter) {
	b.duplex = b.duplex || http.NewResponseController(w).EnableFullDuplex() == nil
}

// holdBody makes the body of r known as one that its sender holds back, if so.
func holdBody(r *http.Request) {
	if r.ProtoMajor == 1 && r.Body != nil && r.Body != http.NoBody && strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
		r.Body = &visitorBody{ReadCloser: r.Body, held: true}
	}
}

// streamBody lets the body of r be read while the answer is written. With HTTP/2 and
// HTTP/3 it always can.
func streamBody(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 1 || r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return
	}
	b, ok := r.Body.(*visitorBody)
	if !ok {
		b = &visitorBody{ReadCloser: r.Body}
		r.Body = b
	}
	b.stream(w)
}

// withoutBody must be called before the final answer to r. If the body of r has not
// been read whole, and net/http is not going to, the connection ends with the answer:
// what is left of the body must not be taken for the next request. That is so where
// the body may still be read, and where it is held back: net/http would read it
// first, with no 100 sent, because it does not recognise it in the wrappers of Caddy;
// server and client would wait for each other.
func withoutBody(w http.ResponseWriter, r *http.Request) {
	b, ok := r.Body.(*visitorBody)
	if !ok || b.ended.Load() {
		return
	}
	if b.held && !b.asked.Load() {
		b.stream(w)
	}
	if b.duplex {
		w.Header().Set("Connection", "close")
	}
}
