package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hears := func(want string) {
		t.Helper()
		b := make([]byte, 100)
		if n, err := l.Read(b); string(b[:n]) != want || err != nil {
			t.Errorf("heard %q, %v; want %s", b[:n], err, want)
		}
	}
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000")
	ctx, cancel := context.WithCancel(t.Context())
	done, asked := make(chan struct{}), make(chan struct{}, 100)
	go func() { defer close(done); notify(ctx, func() { poke(asked) }) }()
	hears("READY=1")
	hears("WATCHDOG=1")
	<-asked
	hears("WATCHDOG=1")
	cancel()
	<-done

	// The watchdog of another process is none of ours.
	t.Setenv("WATCHDOG_PID", "1")
	l2, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path + "2", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l2.Close()
	t.Setenv("NOTIFY_SOCKET", path+"2")
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	notify(ctx, func() { t.Error("asked") })
	l = l2
	hears("READY=1")
	hears("STOPPING=1")
}

// A program that hangs does not say that it is alive: systemd starts it again.
func TestNotifyHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "3000")
	ctx, cancel := context.WithCancel(t.Context())
	done, hung := make(chan struct{}), make(chan struct{}, 1)
	go func() { defer close(done); notify(ctx, func() { poke(hung); <-ctx.Done() }) }()
	<-hung
	if err := l.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := l.Read(b); string(b[:n]) != "READY=1" || err != nil {
		t.Errorf("heard %q, %v", b[:n], err)
	}
	if n, err := l.Read(b); err == nil {
		t.Errorf("heard %q of a program that hangs", b[:n])
	}
	cancel()
	<-done
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
