package caddymodule

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Limits of connections to devices.
const (
	// keptIdle is how long a connection waits for the next request: less than the
	// minute after which small HTTP servers close theirs.
	keptIdle = 30 * time.Second
	// keptPerDevice is as many as a device has streams by default: with fewer, a
	// page opened by many visitors would dial again and again.
	keptPerDevice = wire.DefaultStreams
	// maxResponseHeader bounds, in bytes, the header of a device's answer.
	maxResponseHeader = 64 << 10
	// tlsTimeout bounds the TLS handshake with a device; the hub bounds the rest.
	tlsTimeout = 20 * time.Second
	// streamsOutlive is how long visitors' WebSockets may outlive the
	// configuration that accepted them: for as long as anybody will run Caddy.
	streamsOutlive = 10 * 365 * 24 * time.Hour
)

// visit is a visitor's request to a device, on its way. It travels in the
// context of the request.
type visit struct {
	target   tunnelcore.Target
	from     netip.AddrPort
	hostname string // that the visitor asked for, normal
	sni      string // the device's own hostname, without a port
	edge     *edge
	keep     map[string]bool // headers that pass in any case
}

type visitKey struct{}

// newProxy returns the proxy of one handler. Its upstream is for logs and
// placeholders; the visit decides where a request goes.
func newProxy() *reverseproxy.Handler {
	return &reverseproxy.Handler{
		Transport:        roundTripper{},
		Upstreams:        reverseproxy.UpstreamPool{{Dial: "{http.iottunnel.device}:{http.iottunnel.port}"}},
		StreamCloseDelay: caddy.Duration(streamsOutlive),
	}
}

// serveVisitor passes a request on to the device and the answer back.
func (h *Handler) serveVisitor(w http.ResponseWriter, r *http.Request, e *edge, target tunnelcore.Target) error {
	addLogField(r, zap.String("device", target.Device))
	defer withoutIdleTimeouts(r.Context())()
	hostname := names.Normal(r.Host)
	_, domain, _ := strings.Cut(hostname, ".")
	v := &visit{
		target:   target,
		from:     clientAddr(r),
		hostname: hostname,
		sni:      target.Label + "." + domain,
		edge:     e,
		keep:     h.keep,
	}
	dw := &deviceWriter{ResponseWriter: w, visit: v}
	err := h.proxy.ServeHTTP(dw, r.WithContext(context.WithValue(r.Context(), visitKey{}, v)), nil)
	if err == nil {
		v.cleanTrailers(w.Header())
		return nil
	}
	if answer := (*answers.Error)(nil); errors.As(err, &answer) {
		h.logger.Debug("device did not serve a visitor", "device", target.Device, "error", err)
		return respond(w, r, answer)
	}
	return err
}

// deviceWriter filters the headers of informational answers, which a device may
// send before the one that the transport filters.
type deviceWriter struct {
	http.ResponseWriter
	visit *visit
}

// WriteHeader filters 1xx and sends.
func (w *deviceWriter) WriteHeader(status int) {
	if status < 200 && status != http.StatusSwitchingProtocols {
		w.visit.cleanResponse(w.Header())
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *deviceWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// roundTripper sends requests through the tunnel that their visit names.
type roundTripper struct{}

// RoundTrip sends r to the device. Every error is an *answers.Error, or says that
// the visitor has left (context.Canceled).
func (roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	v := r.Context().Value(visitKey{}).(*visit)
	v.cleanRequest(r)
	// One pool per tunnel and port: a connection never outlives its tunnel, and
	// the name tells the dialer where to go.
	r.URL.Scheme = "http"
	if v.target.Kind == wire.HTTPS {
		r.URL.Scheme = "https"
	}
	r.URL.Host = poolName(v.target)
	var body *watchedBody
	if r.Body != nil && r.Body != http.NoBody {
		body = &watchedBody{ReadCloser: r.Body}
		r.Body = body
	}
	transport := v.edge.fresh
	if body == nil && repeatable(r.Method) {
		transport = v.edge.keep
	}
	res, err := transport.RoundTrip(r)
	switch {
	case err != nil && (body.failed() || r.Context().Err() != nil):
		return nil, fmt.Errorf("visitor has left: %w (%w)", context.Canceled, err)
	case err != nil:
		return nil, answerFor(err)
	case res.StatusCode < 101 || res.StatusCode > 999, res.StatusCode == http.StatusSwitchingProtocols && r.Header.Get("Upgrade") == "":
		res.Body.Close()
		return nil, answerFor(fmt.Errorf("status %d", res.StatusCode))
	}
	v.cleanResponse(res.Header)
	for name := range res.Trailer {
		if ours(name) {
			delete(res.Trailer, name)
		}
	}
	return res, nil
}

// repeatable reports whether the transport may send a request again by itself:
// only then may it use a connection that the device could be closing just now
// (RFC 9110 §9.2.2).
func repeatable(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// answerFor finds the answer for an error of the transport. What answers.From
// cannot place is an answer of the device that is not HTTP.
func answerFor(err error) error {
	if e := answers.From(err); e.Code != wire.Unavailable || errors.Is(err, context.Canceled) || errors.Is(err, e) {
		return e
	}
	return &answers.Error{Code: wire.DeviceRefused, Message: "the device sent an answer that is not valid HTTP", Cause: err}
}

// watchedBody remembers whether the visitor's part of an upload has failed.
type watchedBody struct {
	io.ReadCloser
	bad atomic.Bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.bad.Store(true)
	}
	return n, err
}

func (b *watchedBody) failed() bool { return b != nil && b.bad.Load() }

// newTransport returns the transport whose connections are streams of hub.
func newTransport(hub *tunnelcore.Hub) *http.Transport {
	dial := func(ctx context.Context, _, addr string) (net.Conn, error) {
		return dialDevice(ctx, hub, addr)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		DialContext: dial,
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return secure(ctx, conn)
		},
		Protocols:              protocols,
		DisableCompression:     true, // what the visitor did not ask for is not added
		MaxIdleConnsPerHost:    keptPerDevice,
		IdleConnTimeout:        keptIdle,
		MaxResponseHeaderBytes: maxResponseHeader,
	}
}

// poolName is the host part under which connections to a port of a tunnel are
// kept: TUNNEL.DEVICE:PORT.
func poolName(t tunnelcore.Target) string {
	return t.Tunnel + "." + t.Device + ":" + strconv.Itoa(int(t.Port))
}

// dialDevice opens a stream to what poolName has named. The visitor who is told
// to the device is the one whose request made the connection.
func dialDevice(ctx context.Context, hub *tunnelcore.Hub, addr string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	_, device, _ := strings.Cut(name, ".")
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	v := ctx.Value(visitKey{}).(*visit)
	return hub.Dial(ctx, device, uint16(number), v.from)
}

// secure speaks TLS through a stream, for devices whose service is HTTPS. Their
// certificates are their own: nobody vouches for them, and the tunnel has
// authenticated the device.
func secure(ctx context.Context, conn net.Conn) (net.Conn, error) {
	v := ctx.Value(visitKey{}).(*visit)
	ctx, cancel := context.WithTimeout(ctx, tlsTimeout)
	defer cancel()
	tc := tls.Client(conn, &tls.Config{
		ServerName:         v.sni,
		InsecureSkipVerify: true,             // see above
		MinVersion:         tls.VersionTLS10, // old firmware; the outer connection has its own
		NextProtos:         []string{"http/1.1"},
	})
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}

// respond answers a visitor with e, or returns it for the operator's error
// routes, if some are going to answer.
func respond(w http.ResponseWriter, r *http.Request, e *answers.Error) error {
	if errors.Is(e, context.Canceled) {
		return caddyhttp.Error(499, e) // as reverse_proxy does for who has left
	}
	err := caddyhttp.Error(e.Status(), e)
	if !operatorAnswers(r, err) {
		e.WriteHTTP(w, r)
		return nil
	}
	w.Header().Set(answers.Header, string(e.Code))
	w.Header().Set("X-Robots-Tag", "noindex")
	if e.RetryAfter > 0 {
		seconds := (e.RetryAfter + time.Second - 1) / time.Second
		w.Header().Set("Retry-After", strconv.Itoa(int(seconds)))
	}
	return err
}

// operatorAnswers reports whether an error route of the server would handle err.
// Caddy cannot be asked afterwards: where no route matches, it has sent an empty
// page by then, and sites of one port share a server with each other's routes.
func operatorAnswers(r *http.Request, err error) bool {
	srv, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || srv == nil || srv.Errors == nil || len(srv.Errors.Routes) == 0 {
		return false
	}
	r = srv.Errors.WithError(r, err)
	if orig, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		r.Method, r.RequestURI, r.URL = orig.Method, orig.RequestURI, orig.URL
	}
	return anyMatches(srv.Errors.Routes, r)
}

// anyMatches reports whether a handler in routes would run, other than a
// subroute in which none would.
func anyMatches(routes caddyhttp.RouteList, r *http.Request) bool {
	for _, route := range routes {
		matches, err := route.MatcherSets.AnyMatchWithError(r)
		if err != nil {
			return true // Caddy reports it
		}
		if !matches {
			continue
		}
		for _, handler := range route.Handlers {
			sub, ok := handler.(*caddyhttp.Subroute)
			if !ok || anyMatches(sub.Routes, r) {
				return true
			}
		}
	}
	return false
}

// Interface guards
var (
	_ http.RoundTripper   = roundTripper{}
	_ http.ResponseWriter = (*deviceWriter)(nil)
)
