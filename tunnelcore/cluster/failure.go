package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Close codes of a link socket besides those of RFC 6455 and wire.CloseMalformed.
const (
	// closeAborted ends a stream that the device has aborted.
	closeAborted = 4300
	// closeFailed and the next two end a stream that failed. The reason is the code
	// of the answer, the seconds of its Retry-After, and its message: what each of
	// the three has in the chain of errors besides follows from the code.
	closeFailed = 4301
	closeLost   = 4302 // stream.ErrLost
	closeUnsent = 4303 // stream.ErrLost and stream.ErrUnsent
	// closeUnproved ends a socket whose peer does not have our secret.
	closeUnproved = 4310
)

// lostMessage is of streams whose link broke.
const lostMessage = "the connection to the device's node broke"

// lostRetry is what their visitors may wait: then the device is somewhere else.
const lostRetry = 10 * time.Second

// farewell is the close frame of a stream that failed here for cause, for the node
// that dialled it.
func farewell(cause error) (code int, reason string) {
	var e *answers.Error
	if !errors.As(cause, &e) {
		if errors.Is(cause, net.ErrClosed) || errors.Is(cause, context.Canceled) {
			return wire.CloseGoingAway, "" // this node has ended it, or ends
		}
		return closeAborted, ""
	}
	switch {
	case errors.Is(cause, stream.ErrUnsent):
		code = closeUnsent
	case errors.Is(cause, stream.ErrLost):
		code = closeLost
	default:
		code = closeFailed
	}
	seconds := int64((min(max(0, e.RetryAfter), maxRetry) + time.Second - 1) / time.Second)
	return code, cutText(fmt.Sprintf("%s %d %s", e.Code, seconds, e.Message), wire.MaxReason)
}

// why is what a stream of a link fails with whose socket did with err: what it failed
// with at the other node; ErrLost if it is the link that broke. nil is an abort.
func why(err error) error {
	var e *socket.CloseError
	errors.As(err, &e)
	switch {
	case e == nil, e.Code == socket.CloseAbnormal, e.Code == wire.CloseGoingAway:
		return lost(err) // nobody has said that the stream was to end
	case e.Code == closeFailed, e.Code == closeLost, e.Code == closeUnsent:
		return failure(e)
	}
	return nil
}

// lost is what a stream fails with whose link broke with err.
func lost(err error) error {
	return &answers.Error{
		Code: wire.DeviceOffline, RetryAfter: lostRetry, Message: lostMessage,
		Cause: fmt.Errorf("%w: %w: %w", stream.ErrAborted, stream.ErrLost, err),
	}
}

// failure reads the reason of a stream that failed.
func failure(e *socket.CloseError) error {
	code, rest, _ := strings.Cut(e.Reason, " ")
	retry, message, _ := strings.Cut(rest, " ")
	seconds, err := strconv.ParseUint(retry, 10, 16)
	if err != nil || code == "" {
		return nil
	}
	a := &answers.Error{
		Code: knownCode(wire.Code(code)), Message: message,
		RetryAfter: min(time.Duration(seconds)*time.Second, maxRetry),
	}
	switch e.Code {
	case closeLost:
		a.Cause = fmt.Errorf("%w: %w", stream.ErrAborted, stream.ErrLost)
	case closeUnsent:
		a.Cause = fmt.Errorf("%w: %w: %w", stream.ErrAborted, stream.ErrLost, stream.ErrUnsent)
	}
	return a
}
