package caddymodule

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
)

// heldBody is the body of a request whose sender waits for a 100 before it sends
// it (RFC 9110 §10.1.1). net/http sends the 100 at the first Read.
type heldBody struct {
	io.ReadCloser
	asked atomic.Bool
}

func (b *heldBody) Read(p []byte) (int, error) {
	b.asked.Store(true)
	return b.ReadCloser.Read(p)
}

// holdBody makes the body of r known as one that its sender holds back, if so.
func holdBody(r *http.Request) {
	if r.ProtoMajor == 1 && r.Body != nil && r.Body != http.NoBody && strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
		r.Body = &heldBody{ReadCloser: r.Body}
	}
}

// withoutBody must be called before the final answer to r. If the body of r is
// still held back, it lets the answer go without it, and ends the connection:
// net/http would read the body first, with no 100 sent, because it does not
// recognise it in the wrappers of Caddy; server and client would wait for each
// other.
func withoutBody(w http.ResponseWriter, r *http.Request) {
	b, ok := r.Body.(*heldBody)
	if ok && !b.asked.Load() && http.NewResponseController(w).EnableFullDuplex() == nil {
		w.Header().Set("Connection", "close")
	}
}
