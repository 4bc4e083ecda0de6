package main

import (
	"context"
	"net"
	"os"
	"strconv"
	"time"
)

// notify tells systemd that the program has started, and from then on, as often as it
// wants, that alive has returned (sd_notify(3), sd_watchdog_enabled(3)); until ctx ends.
// Without systemd it does nothing.
func notify(ctx context.Context, alive func()) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	// A name that begins with @ is one without a file: package net knows that as well.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return // whoever set it does not listen
	}
	defer conn.Close()
	say := func(text string) { _, _ = conn.Write([]byte(text)) } // systemd sees what is missing
	say("READY=1")
	defer say("STOPPING=1")
	limit, err := strconv.ParseUint(os.Getenv("WATCHDOG_USEC"), 10, 40)
	pid := os.Getenv("WATCHDOG_PID")
	if err != nil || limit == 0 || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(max(time.Duration(limit)*time.Microsecond/3, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			alive()
			say("WATCHDOG=1")
		}
	}
}
