package roundtrip

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// smallBody is the longest body that is read before anything is sent, so that
	// it travels with the head. The device need not wait for its visitor then.
	smallBody = 4 << 10
	// probeTime is how long a request that should have no body gets to say that it
	// has none.
	probeTime = 200 * time.Millisecond
	// continueWait is how long a body whose sender waits for a 100 is held back for
	// the device to ask for it or to refuse it: many small servers do neither.
	continueWait = time.Second
)

// requestBody is the body of a request.
type requestBody struct {
	length int64  // -1: not known
	small  []byte // all of it, if it was small
	rest   io.ReadCloser
}

func (b requestBody) close() {
	if b.rest != nil {
		b.rest.Close()
	}
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		r.Body.Close()
	}
}

// bodyOf finds out what body r has. The error is the visitor's: a *BodyError.
func bodyOf(r *http.Request) (requestBody, error) {
	b := requestBody{length: r.ContentLength, rest: r.Body}
	if b.rest == nil || b.rest == http.NoBody {
		return requestBody{}, nil
	}
	switch {
	case b.length == 0:
		b.length = -1
	case b.length > 0 && b.length <= smallBody && !expectsContinue(r):
		// One byte more: what is behind the end is told by reading on.
		small, err := io.ReadAll(io.LimitReader(b.rest, b.length+1))
		b.rest.Close()
		if err == nil && int64(len(small)) != b.length {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return b, &BodyError{err}
		}
		return requestBody{length: b.length, small: small}, nil
	}
	if b.length < 0 && usuallyWithout(r.Method) && len(r.Trailer) == 0 {
		return b.probe()
	}
	return b, nil
}

// usuallyWithout reports whether a request of that method seldom has a body. Over
// HTTP/3 its length is not known even if it has none.
func usuallyWithout(method string) bool {
	switch method {
	case "", http.MethodGet, http.MethodHead, http.MethodDelete, http.MethodOptions, "PROPFIND", "SEARCH":
		return true
	}
	return false
}

// probe waits a moment for the body to end at once.
func (b requestBody) probe() (requestBody, error) {
	p := &probed{ReadCloser: b.rest, done: make(chan struct{})}
	go p.begin() // ends with the body, which its owner closes
	patience := time.NewTimer(probeTime)
	defer patience.Stop()
	select {
	case <-p.done:
		if p.n == 0 && p.err == io.EOF {
			b.rest.Close()
			return requestBody{}, nil
		}
	case <-patience.C:
	}
	b.rest = p
	return b, nil
}

// probed is a body whose first byte is being read.
type probed struct {
	io.ReadCloser
	done  chan struct{} // closed when the fields below are final
	first [1]byte
	n     int
	err   error
	begun bool // first has been returned
}

func (p *probed) begin() {
	defer close(p.done)
	for p.n == 0 && p.err == nil {
		p.n, p.err = p.ReadCloser.Read(p.first[:])
	}
}

func (p *probed) Read(b []byte) (int, error) {
	if !p.begun && len(b) > 0 {
		<-p.done
		p.begun = true
		if p.n > 0 {
			b[0] = p.first[0]
			return 1, p.err
		}
	}
	if p.err != nil && p.begun {
		return 0, p.err
	}
	return p.ReadCloser.Read(b)
}

// BodyError is the failure of a request's body: the visitor's, not the device's.
type BodyError struct{ Err error }

func (e *BodyError) Error() string { return fmt.Sprintf("body of the request: %v", e.Err) }

func (e *BodyError) Unwrap() error { return e.Err }

func expectsContinue(r *http.Request) bool {
	return strings.EqualFold(strings.TrimSpace(r.Header.Get("Expect")), "100-continue")
}

// errUnwanted: the device has answered, and needs no body, or no more of it.
var errUnwanted = errors.New("the device has answered without the body")

// upload sends the body of a request while its answer is read.
type upload struct {
	c       *conn
	r       *http.Request
	body    requestBody
	timeout time.Duration

	asked    chan struct{} // closed when the device wants the body; nil: nobody asks
	unwanted chan struct{} // closed when nobody wants it any more
	done     chan struct{} // closed when run has ended: then err is final
	err      error

	mu       sync.Mutex // guards what follows, and the read deadline of c while run runs
	answered bool
}

// exchangeBody sends the head, out, and the body behind it, and reads the answer.
// The device may answer before it has all of the body.
func (c *conn) exchangeBody(r *http.Request, out []byte, b requestBody, timeout time.Duration) (*http.Response, error) {
	u := &upload{
		c: c, r: r, body: b, timeout: timeout,
		unwanted: make(chan struct{}), done: make(chan struct{}),
	}
	w := watch{ctx: r.Context(), c: c}
	w.begin()
	if err := c.writeHead(w.ctx, out, timeout); err != nil {
		w.end()
		c.abort()
		if err = w.reason(err); errors.Is(err, errNotTaken) {
			b.close()
			return nil, err
		}
		return nil, failure{err, false}
	}
	var asked func()
	if expectsContinue(r) {
		u.asked = make(chan struct{})
		asked = sync.OnceFunc(func() { close(u.asked) })
	}
	// It ends with the exchange, or later, with a visitor who keeps the body back:
	// the server that has read the request closes it in the end.
	go u.run()
	h, err := c.readAnswer(r, asked, u.expired)
	if err == nil && h.status == http.StatusSwitchingProtocols {
		err = malformed("it switches protocols in the middle of a request")
	}
	u.mu.Lock()
	u.answered = true
	u.mu.Unlock()
	if err != nil {
		w.end()
		c.abort()
		c.dropBuffer()
		u.settle(false)
		select {
		case <-u.done:
			if u.err != nil && u.err != errUnwanted {
				err = fmt.Errorf("%w (%w)", u.err, err)
			}
		default:
		}
		return nil, w.reason(err)
	}
	_ = c.SetReadDeadline(time.Time{}) // fails only on a connection whose reads fail
	return c.respond(r, h, w, u, false), nil
}

// expired is called when the read deadline is there, which run has set.
func (u *upload) expired() error {
	return fmt.Errorf("no answer within %v: %w", u.timeout, os.ErrDeadlineExceeded)
}

// sentWait is how long the end of an answer waits for the end of its request.
const sentWait = 50 * time.Millisecond

// settle ends the upload. It reports whether all was sent, as far as that is known
// in a moment: wait says whether it may take one.
func (u *upload) settle(wait bool) bool {
	if wait {
		patience := time.NewTimer(sentWait)
		defer patience.Stop()
		select {
		case <-u.done:
		case <-patience.C:
		}
	}
	close(u.unwanted)
	select {
	case <-u.done:
		return u.err == nil
	default:
		return false
	}
}

// run sends the body. A visitor who fails takes the connection along; a device that
// takes no more may have answered.
func (u *upload) run() {
	err := u.send()
	u.body.close()
	u.err = err
	close(u.done)
	if errors.As(err, new(*BodyError)) {
		u.c.abort()
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.answered && u.timeout > 0 {
		_ = u.c.SetReadDeadline(time.Now().Add(u.timeout)) // fails only on a connection whose reads fail
	}
}

func (u *upload) send() error {
	if u.asked != nil {
		patience := time.NewTimer(continueWait)
		defer patience.Stop()
		select {
		case <-u.asked:
		case <-patience.C:
		case <-u.unwanted:
			return errUnwanted
		}
	}
	if u.body.length < 0 {
		return u.sendChunks()
	}
	src := &source{r: u.body.rest}
	if err := src.copy(u.c.Conn, u.body.length); err != nil {
		return err
	}
	// The end is told by reading on, to those who wait for it.
	var b [1]byte
	if n, err := u.body.rest.Read(b[:]); n > 0 {
		return &BodyError{errors.New("longer than it said")}
	} else if err != io.EOF && err != nil {
		return &BodyError{err}
	}
	return nil
}

// source remembers what reading it ended with.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.err = err
	return n, err
}

// copy sends n bytes of s.
func (s *source) copy(to io.Writer, n int64) error {
	buf := pieces.Get().(*[pieceSize]byte)
	defer pieces.Put(buf)
	sent, err := io.CopyBuffer(to, io.LimitReader(s, n), buf[:])
	switch {
	case s.err != nil && s.err != io.EOF:
		return &BodyError{s.err}
	case err != nil:
		return err
	case sent < n:
		return &BodyError{io.ErrUnexpectedEOF}
	}
	return nil
}

// pieceSize is how much of a body is sent at a time.
const pieceSize = 32 << 10

var pieces = sync.Pool{New: func() any { return new([pieceSize]byte) }}

// sendChunks sends a body whose length is not known, and its trailer.
func (u *upload) sendChunks() error {
	const front = len("7fff\r\n") // in front of a chunk: pieceSize has four digits
	buf := pieces.Get().(*[pieceSize]byte)
	defer pieces.Put(buf)
	for {
		n, err := u.body.rest.Read(buf[front : pieceSize-2])
		if n > 0 {
			size := strconv.AppendInt(make([]byte, 0, front), int64(n), 16)
			start := front - len(size) - 2
			copy(buf[start:], size)
			copy(buf[front-2:], "\r\n")
			copy(buf[front+n:], "\r\n")
			if _, err := u.c.Write(buf[start : front+n+2]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			end, err := appendTrailer([]byte("0\r\n"), u.r.Trailer)
			if err != nil {
				return &BodyError{err}
			}
			_, err = u.c.Write(end)
			return err
		case err != nil:
			return &BodyError{err}
		}
	}
}

// appendTrailer appends the fields that follow the last chunk, and the empty line.
func appendTrailer(b []byte, trailer http.Header) ([]byte, error) {
	for name, values := range trailer {
		if ofFraming(http.CanonicalHeaderKey(name)) {
			continue
		}
		for _, value := range values {
			var err error
			if b, err = appendField(b, name, value); err != nil {
				return b, err
			}
		}
	}
	return append(b, "\r\n"...), nil
}
