package caddymodule

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

// auditName is the logger that tells who reached which device: Caddy's `log` writes it
// to a file of its own with `include iottunnel.audit`.
const auditName = "iottunnel.audit"

// visitShare is the Visit.Kind of an HTTP request by a share link.
const visitShare = "share"

// auditor writes the audit log of one configuration.
type auditor struct{ log *zap.Logger }

func newAuditor(ctx caddy.Context) auditor { return auditor{ctx.Logger(auditLog{})} }

// auditLog is a module to Caddy's logs alone: they tell loggers by modules.
type auditLog struct{}

// CaddyModule returns what Caddy names the logger after.
func (auditLog) CaddyModule() caddy.ModuleInfo { return caddy.ModuleInfo{ID: auditName} }

// stream writes a visit that was no HTTP request.
func (a auditor) stream(v tunnelcore.Visit) { a.write(v) }

// write writes one entry, if the log is wanted by anybody.
func (a auditor) write(v tunnelcore.Visit, more ...zap.Field) {
	entry := a.log.Check(zapcore.InfoLevel, "visit")
	if entry == nil {
		return
	}
	end := "clean"
	if v.Err != nil {
		end = v.Err.Error()
	}
	remote := v.From.String()
	if v.From.Port() == 0 {
		remote = v.From.Addr().String()
	}
	fields := []zap.Field{
		zap.String("kind", v.Kind), zap.String("device", v.Device), zap.Uint16("port", v.Port),
		zap.String("remote", remote), zap.Time("began", v.Began), zap.Duration("duration", time.Since(v.Began)),
		zap.Int64("bytes_in", v.In), zap.Int64("bytes_out", v.Out), zap.String("end", end),
	}
	if v.Grant != "" {
		fields = append(fields, zap.String("grant", v.Grant), zap.String("granted_by", v.By))
	}
	entry.Write(append(fields, more...)...)
}

// auditWriter counts what a visitor gets, over HTTP or as a WebSocket.
type auditWriter struct {
	http.ResponseWriter
	status int
	out    atomic.Int64
	in     atomic.Int64 // bodies and WebSockets, as the rest
}

// WriteHeader notes the final status.
func (w *auditWriter) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *auditWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.out.Add(int64(n))
	return n, err
}

// Hijack gives the connection away, which counts from then on.
func (w *auditWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, buffered, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.in.Add(int64(buffered.Reader.Buffered())) // stays in the reader
	counted := &auditConn{c, w}
	return counted, bufio.NewReadWriter(buffered.Reader, bufio.NewWriter(counted)), nil
}

// Unwrap is for http.ResponseController.
func (w *auditWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// auditConn counts for the writer that it was hijacked from.
type auditConn struct {
	net.Conn
	w *auditWriter
}

func (c *auditConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.w.in.Add(int64(n))
	return n, err
}

func (c *auditConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.w.out.Add(int64(n))
	return n, err
}

// auditBody counts what a visitor sends.
type auditBody struct {
	io.ReadCloser
	w *auditWriter
}

func (b *auditBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.w.in.Add(int64(n))
	return n, err
}

// countBody has the body of r counted.
func (w *auditWriter) countBody(r *http.Request) {
	switch b := r.Body.(type) {
	case nil:
	case *visitorBody: // known by its type elsewhere
		b.ReadCloser = &auditBody{b.ReadCloser, w}
	default:
		if b != http.NoBody {
			r.Body = &auditBody{b, w}
		}
	}
}

// Interface guards
var _ http.Hijacker = (*auditWriter)(nil)
