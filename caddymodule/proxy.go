package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/iottunnel/iottunnel/caddymodule/roundtrip"
	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// streamsOutlive is how long visitors' WebSockets may outlive the configuration
// that accepted them: for as long as anybody will run Caddy.
const streamsOutlive = 10 * 365 * 24 * time.Hour

// visit is a visitor's request to a device, on its way, and where the answer goes.
type visit struct {
	deviceWriter
	target   tunnelcore.Target
	from     netip.AddrPort
	hostname string // that the visitor asked for, normal
	edge     *edge
	keep     map[string]bool // headers that pass in any case
	routed   bool            // came through a router
	shared   bool            // let in by a link
}

// visitVar is the variable of a request that holds its visit: the transport finds
// it there.
const visitVar = "iottunnel.visit"

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
func (h *Handler) serveVisitor(w http.ResponseWriter, r *http.Request, e *edge, target tunnelcore.Target, routed, shared bool) error {
	addLogField(r, zap.String("device", target.Device))
	v := &visit{
		target:   target,
		from:     clientAddr(r),
		hostname: names.Normal(r.Host),
		edge:     e,
		keep:     h.keep,
		routed:   routed,
		shared:   shared,
	}
	leave, err := e.hub.Enter(r.Context(), target.Device, v.from.Addr())
	if err != nil {
		v.tellOwner(w)
		return respond(w, r, answers.From(err))
	}
	defer leave()
	defer relaxReads(r)()
	r = v.guardConnection(r)
	v.deviceWriter = deviceWriter{ResponseWriter: w, visit: v, request: r}
	defer v.finish()
	caddyhttp.SetVar(r.Context(), visitVar, v)
	err = h.proxy.ServeHTTP(&v.deviceWriter, r, nil)
	if err == nil {
		v.cleanResponse(w.Header()) // trailers: the header has been sent
		return nil
	}
	v.tellOwner(w)
	if answer := (*answers.Error)(nil); errors.As(err, &answer) {
		h.logger.Debug("device did not serve a visitor", "device", target.Device, "error", err)
		return respond(w, r, answer)
	}
	withoutBody(w, r)
	return err
}

// tellOwner tells a router that the device is connected to another node.
func (v *visit) tellOwner(w http.ResponseWriter) {
	if v.routed && v.target.Node != v.edge.hub.Node() {
		w.Header().Set(ownerHeader, v.target.Node)
	}
}

// deviceWriter filters the headers of informational answers, which a device may
// send before the one that the transport filters. The final one goes to the
// visitor without the body that it holds back, and with the time that it may need.
type deviceWriter struct {
	http.ResponseWriter
	visit   *visit
	request *http.Request
	restore func() // undoes what was done for the final answer; nil: nothing was
}

// WriteHeader sends what a device has answered.
func (w *deviceWriter) WriteHeader(status int) {
	informational := status < 200 && status != http.StatusSwitchingProtocols
	switch {
	case informational && w.visit.routed:
		return // there are routers that take it for the final one (nginx before 1.29)
	case informational:
		w.visit.cleanResponse(w.Header())
	default:
		w.visit.tellOwner(w)
	}
	if status >= 200 {
		withoutBody(w.ResponseWriter, w.request)
		if w.restore == nil && !isShort(w.Header()) {
			w.restore = relaxWrites(w.request)
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// shortAnswer is how long an answer may be, in bytes, that the operating system
// takes without waiting for the visitor: it needs no more time than Caddy gives.
const shortAnswer = 16 << 10

func isShort(h http.Header) bool {
	length := h["Content-Length"]
	if len(length) != 1 {
		return false
	}
	n, err := strconv.ParseUint(length[0], 10, 64)
	return err == nil && n <= shortAnswer
}

// finish is called when the visitor has been served.
func (w *deviceWriter) finish() {
	if w.restore != nil {
		w.restore()
	}
}

// Unwrap is for http.ResponseController.
func (w *deviceWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// roundTripper sends requests through the tunnel that their visit names.
type roundTripper struct{}

// RoundTrip sends r to the device. Every error is an *answers.Error, a handler's in
// front, or says that the visitor has left (context.Canceled).
func (roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	v := caddyhttp.GetVar(r.Context(), visitVar).(*visit)
	v.cleanRequest(r)
	v.cleanTrailer(r.Trailer) // the names that are announced
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength < 0 {
		r.Body = &trailedBody{ReadCloser: r.Body, visit: v, trailer: r.Trailer}
	}
	pool := v.edge.conns.none
	alone := !repeatable(r.Method) || bindsConnection(r.Header)
	if !alone {
		pool = v.edge.conns.kept(r.Context(), v)
	}
	res, err := pool.RoundTrip(r, roundtrip.Call{
		Port: v.target.Port, Dialer: v, Alone: alone,
		Timeout: time.Duration(v.edge.conns.answerTimeout.Load()),
	})
	switch {
	case err != nil:
		return nil, faultOf(r, err)
	case res.StatusCode < 101 || res.StatusCode > 999, res.StatusCode == http.StatusSwitchingProtocols && r.Header.Get("Upgrade") == "":
		res.Body.Close()
		return nil, answerFor(fmt.Errorf("status %d", res.StatusCode))
	}
	v.cleanResponse(res.Header)
	v.cleanResponse(res.Trailer)
	if v.shared {
		keepPrivate(res.Header)
	}
	return res, nil
}

// faultOf says whose fault it is that the transport has failed.
func faultOf(r *http.Request, err error) error {
	var body *roundtrip.BodyError
	switch {
	case r.Context().Err() == nil && !errors.As(err, &body):
		return answerFor(err)
	case r.Context().Err() == nil && errors.As(body.Err, new(caddyhttp.HandlerError)):
		return err // a handler in front does not let the body pass
	case r.Context().Err() == nil && r.ProtoMajor == 1 && r.ContentLength < 0 && !isBroken(body.Err):
		return &answers.Error{Code: wire.BadRequest, Message: "the request has a body that is not valid HTTP", Cause: err}
	}
	return fmt.Errorf("visitor has left: %w (%w)", context.Canceled, err)
}

// isBroken reports whether reading a body over HTTP/1 has failed by what carries it:
// else it is what it holds, chunks that are none.
func isBroken(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, http.ErrBodyReadAfterClose) || errors.As(err, new(net.Error))
}

// repeatable reports whether a request may be sent again without asking: only then
// may it use a connection that the device could be closing just now (RFC 9110
// §9.2.2).
func repeatable(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// Again lets a request be sent again that was lost with its tunnel: if none of it has
// left, or it may be sent twice. Dial waits for the device to come back.
func (v *visit) Again(r *http.Request, body bool, err error) bool {
	return errors.Is(err, tunnelcore.ErrUnsent) ||
		errors.Is(err, tunnelcore.ErrLost) && !body && repeatable(r.Method)
}

// bindsConnection reports whether a request may log in the connection it comes
// on, as NTLM and Negotiate do: its next request would be somebody else's, under
// that name. Of schemes that are not known it may be feared. (A connection is
// bound by what a request says; an answer that offers NTLM binds none.)
func bindsConnection(h http.Header) bool {
	for _, credentials := range h["Authorization"] {
		scheme, _, _ := strings.Cut(strings.TrimLeft(credentials, " \t"), " ")
		switch strings.ToLower(scheme) {
		case "", "basic", "bearer", "digest":
		default:
			return true
		}
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

// trailedBody cleans the trailer of a request, which is complete at the end of the
// body.
type trailedBody struct {
	io.ReadCloser
	visit   *visit
	trailer http.Header
}

func (b *trailedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.visit.cleanTrailer(b.trailer)
	}
	return n, err
}

// Interface guards
var (
	_ http.RoundTripper   = roundTripper{}
	_ http.ResponseWriter = (*deviceWriter)(nil)
	_ roundtrip.Dialer    = (*visit)(nil)
)
