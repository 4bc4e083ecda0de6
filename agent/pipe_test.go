package agent

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

func testPipe() (a, b *pipeConn) { return newPipe(listenAddr("80/http"), &net.TCPAddr{Port: 1}) }

func TestPipeIsAConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		a, b := testPipe()
		return a, b, func() { a.Close(); b.Close() }, nil
	})
}

func TestPipeHalfClose(t *testing.T) {
	a, b := testPipe()
	io.WriteString(a, "from a")
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); string(got) != "from a" || err != nil {
		t.Errorf("b read %q, %v", got, err)
	}
	if _, err := io.WriteString(a, "more"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after the end: %v", err)
	}
	io.WriteString(b, "from b")
	b.Close()
	if got, err := io.ReadAll(a); string(got) != "from b" || err != nil {
		t.Errorf("a read %q, %v", got, err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Errorf("a second end: %v", err)
	}
	a.Close()
	a.Close()
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if err := a.CloseWrite(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("end after close: %v", err)
	}
	if err := a.SetReadDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("deadline after close: %v", err)
	}
}

func TestPipeCloseRefusesTheOtherEnd(t *testing.T) {
	a, b := testPipe()
	full := make(chan error)
	go func() {
		_, err := a.Write(make([]byte, 2*pipeBuffer))
		full <- err
	}()
	io.ReadFull(b, make([]byte, pipeBuffer/2))
	b.Close()
	if err := <-full; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write under way: %v", err)
	}
	if _, err := io.WriteString(a, "x"); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write: %v", err)
	}
	if _, err := a.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v", err)
	}
}

func TestPipeAbort(t *testing.T) {
	a, b := testPipe()
	io.WriteString(a, "half of it")
	reads := make(chan error)
	go func() {
		_, err := a.Read(make([]byte, 1))
		reads <- err
	}()
	a.Abort()
	if err := <-reads; err == nil || err == io.EOF {
		t.Errorf("own read under way: %v", err)
	}
	for name, err := range map[string]error{
		"read":  second(b.Read(make([]byte, 10))),
		"write": second(b.Write([]byte("x"))),
	} {
		if !errors.Is(err, ErrAborted) {
			t.Errorf("%s of the other end: %v", name, err)
		}
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("own write: %v", err)
	}
	b.Close()
	b.Abort() // harmless
}

func second[T any](_ T, err error) error { return err }

func TestPipeIsBounded(t *testing.T) {
	a, b := testPipe()
	defer b.Close()
	defer a.Close()
	a.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	n, err := a.Write(make([]byte, 3*pipeBuffer))
	if n != pipeBuffer || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("wrote %d, %v", n, err)
	}
	if n, err := io.ReadFull(b, make([]byte, pipeBuffer)); err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	if a.out.ring != nil {
		t.Error("an idle connection holds a buffer")
	}
}

func TestPipeDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := testPipe()
		defer b.Close()
		defer a.Close()
		start := time.Now()
		a.SetReadDeadline(start.Add(time.Minute))
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("read: %v after %v", err, time.Since(start))
		}
		// It stays until it is moved, and what it ended loses nothing.
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("again: %v", err)
		}
		a.SetReadDeadline(time.Time{})
		go func() {
			time.Sleep(time.Hour)
			io.WriteString(b, "x")
		}()
		if _, err := a.Read(make([]byte, 1)); err != nil || time.Since(start) != time.Hour+time.Minute {
			t.Errorf("read without a deadline: %v after %v", err, time.Since(start))
		}
	})
}

func TestPipeRing(t *testing.T) {
	a, b := testPipe()
	var sent, got bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() {
		defer a.Close()
		for i := range 2000 {
			piece := bytes.Repeat([]byte{byte(i)}, i*37%5000)
			sent.Write(piece)
			if n, err := a.Write(piece); n != len(piece) || err != nil {
				t.Errorf("wrote %d of %d, %v", n, len(piece), err)
				return
			}
		}
	})
	buf := make([]byte, 7001)
	for i := 0; ; i++ {
		n, err := b.Read(buf[:1+i*53%7000])
		got.Write(buf[:n])
		if err != nil {
			if err != io.EOF {
				t.Error(err)
			}
			break
		}
	}
	wg.Wait()
	if !bytes.Equal(sent.Bytes(), got.Bytes()) {
		t.Errorf("sent %d bytes, got %d, not the same", sent.Len(), got.Len())
	}
}
