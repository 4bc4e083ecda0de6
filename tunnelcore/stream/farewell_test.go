package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/sockettest"
)

// whyError is what the tests' Why makes of how a socket ended.
type whyError struct{ code int }

func (e whyError) Error() string { return fmt.Sprint("ended with ", e.code) }

func why(err error) error {
	if e := (*socket.CloseError)(nil); errors.As(err, &e) {
		return whyError{e.Code}
	}
	return nil
}

// partingPair is a stream that says farewell when it is aborted by a relay, and its
// peer.
func partingPair(t *testing.T, transport string, farewell func(error) (int, string)) (relayed, peer *Stream) {
	t.Helper()
	c, s := ends.Conns(t, transport)
	a, b := sockettest.Pair(t, c, s)
	owner := new(sync.WaitGroup)
	relayed = New(b, Options{Owner: owner, Farewell: farewell})
	peer = New(a, Options{Owner: owner, Why: why})
	t.Cleanup(func() {
		relayed.Abort()
		peer.Abort()
		owner.Wait()
	})
	return relayed, peer
}

// The other end of a stream that a relay gives up reads and writes for what cause.
func TestFarewell(t *testing.T) {
	cause := errors.New("the service broke")
	for _, transport := range ends.Transports {
		t.Run(transport, func(t *testing.T) {
			relayed, peer := partingPair(t, transport, func(err error) (int, string) {
				if !errors.Is(err, cause) {
					t.Errorf("farewell for %v", err)
				}
				return 4321, "broken"
			})
			local, service := net.Pipe()
			defer service.Close()
			ctx, cancel := context.WithCancelCause(context.Background())
			done := relayBetween(ctx, local, relayed)
			ends.Within(t, "farewell", func() {
				io.WriteString(peer, "request")
				if b := make([]byte, 7); true {
					io.ReadFull(service, b)
				}
				reads := reading(peer)
				writes := make(chan error, 1)
				go func() { // more than anybody takes
					for {
						if _, err := peer.Write(make([]byte, 32<<10)); err != nil {
							writes <- err
							return
						}
					}
				}()
				cancel(cause)
				if r := <-reads; r.err != (whyError{4321}) {
					t.Errorf("read: %v", r.err)
				}
				if err := <-writes; err != (whyError{4321}) {
					t.Errorf("write: %v", err)
				}
				if _, err := peer.Write([]byte("x")); err != (whyError{4321}) {
					t.Errorf("write again: %v", err)
				}
				if _, err := peer.Read(make([]byte, 1)); err != (whyError{4321}) {
					t.Errorf("read again: %v", err)
				}
				peer.Close()
				if o := <-done; !errors.Is(o.err, cause) {
					t.Errorf("relay: %v", o.err)
				}
				relayed.opts.Owner.Wait() // long before partTime
			})
		})
	}
}

// Without a farewell, or with none for this cause, and when it is closed already, an
// abort is one.
func TestNoFarewell(t *testing.T) {
	for name, farewell := range map[string]func(error) (int, string){
		"none": nil, "not for this": func(error) (int, string) { return 0, "" },
	} {
		t.Run(name, func(t *testing.T) {
			relayed, peer := partingPair(t, "tcp", farewell)
			got := reading(peer)
			relayed.part(io.ErrUnexpectedEOF)
			if r := <-got; r.err != (whyError{socket.CloseAbnormal}) {
				t.Errorf("%+v", r)
			}
			relayed.opts.Owner.Wait()
		})
	}
	t.Run("closed", func(t *testing.T) {
		relayed, peer := partingPair(t, "tcp", func(error) (int, string) { return 4321, "" })
		relayed.Close()
		relayed.part(io.ErrUnexpectedEOF)
		ends.Within(t, "Owner", relayed.opts.Owner.Wait)
		if r := readAll(peer); r.err != nil && r.err != (whyError{socket.CloseAbnormal}) {
			t.Errorf("%+v", r)
		}
	})
}

// A transfer socket that begins with a stream can have others after it.
func TestParkedWithoutMux(t *testing.T) {
	c, s := ends.Conns(t, "tcp")
	a, b := sockettest.Pair(t, c, s)
	defer a.Close()
	defer b.Close()
	for i := range 100 {
		owner := new(sync.WaitGroup)
		parked := make(chan *socket.Socket, 2)
		opts := Options{Owner: owner, Parked: func(s *socket.Socket) { parked <- s }}
		x, y := New(a, opts), New(b, opts)
		ends.Within(t, "exchange", func() {
			go func() {
				io.WriteString(x, fmt.Sprint("request ", i))
				x.CloseWrite()
			}()
			if got := readAll(y); got != (result{fmt.Sprint("request ", i), nil}) {
				t.Errorf("%+v", got)
			}
			io.WriteString(y, "answer")
			y.Close()
			if got := readAll(x); got != (result{"answer", nil}) {
				t.Errorf("%+v", got)
			}
			x.Close()
			<-parked
			<-parked
			owner.Wait()
		})
	}
}
