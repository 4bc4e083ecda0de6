// Package answers turns an error code into what its reader gets: HTTP status,
// headers, and a page, a line of text or JSON. It is the one source of these,
// for Caddy and for the Lua router, which must answer with the same bytes: every
// body is a fixed text with few variables (see page.go and testdata).
package answers

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Error is an answer that the edge makes itself. A handler returns it as an
// error; WriteHTTP or WriteJSON sends it. It may be written by several
// goroutines at once, and is not changed by that.
type Error struct {
	Code wire.Code
	// Message is one sentence for people, English, without a full stop. It is
	// the code's own sentence when empty, and cut at MessageMax bytes. It may
	// hold what a stranger sent: it is escaped, and control characters in it
	// become spaces.
	Message string
	// RetryAfter is sent as a header, in whole seconds, rounded up; zero or
	// less: no header. It is also when the page asks again, within bounds.
	RetryAfter time.Duration
	// LastSeen is when an offline device was connected for the last time; zero:
	// unknown.
	LastSeen time.Time
	// Cause is for logs and errors.Is, and never shown.
	Cause error
}

// MessageMax is the length in bytes that a message is cut to.
const MessageMax = 300

// Error is the code, the message and the cause, for logs.
func (e *Error) Error() string {
	s := string(e.Code) + ": " + e.message()
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Status is the HTTP status of the code.
func (e *Error) Status() int { return Status(e.Code) }

// Status is the HTTP status of a code; 500 for one that does not exist.
func Status(code wire.Code) int { return entryOf(code).Status }

// From finds the answer for an error that came up on the way to a device; nil
// for nil. In this order:
//
//   - an *Error in the chain is the answer;
//   - context.Canceled is unavailable: the visitor has left, and reads nothing,
//     or this node is stopping, and another may serve the next attempt. It is
//     never the device's fault. errors.Is(answer, context.Canceled) tells it, so
//     that logs and metrics can leave it out;
//   - a deadline or another timeout is device_timeout;
//   - a stream that ended or was reset where an answer was due is device_refused;
//   - all else is unavailable: something between the visitor and the device.
//
// The error becomes the Cause of the answer.
func From(err error) *Error {
	var e *Error
	var timeout net.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.Canceled):
		return &Error{Code: wire.Unavailable, Message: "the request was given up before the device answered", Cause: err}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return &Error{Code: wire.DeviceTimeout, Cause: err}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPIPE):
		return &Error{Code: wire.DeviceRefused, Message: "the device closed the connection before it answered", Cause: err}
	}
	return &Error{Code: wire.Unavailable, Cause: err}
}

// message is what is shown: one line of valid UTF-8, at most MessageMax bytes.
func (e *Error) message() string {
	return cmp.Or(oneLine(e.Message), entryOf(e.Code).Message)
}

// oneLine makes s fit for a line of a log, a page or a terminal: what is not
// UTF-8 becomes U+FFFD, what is not printable a space, and what is longer than
// MessageMax bytes ends there, between two characters, with an ellipsis.
func oneLine(s string) string {
	var b strings.Builder
	end := ""
	for _, r := range s {
		if !unicode.IsPrint(r) {
			r = ' '
		}
		if b.Len()+utf8.RuneLen(r) > MessageMax {
			end = "…"
			break
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String()) + end
}
