package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// result is what one measurement found.
type result struct {
	requests int
	bytes    int64 // of bodies
	took     time.Duration
	p50, p99 time.Duration // of requests
	cpu      time.Duration // of the route's processes; 0: not known
}

// measure puts a load on a route for a while.
func measure(ctx context.Context, r route, l load, length time.Duration) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	before, begin := cpuTime(r.procs), time.Now()
	visitors := make([]visitor, l.visitors)
	errs := make([]error, l.visitors)
	var wg sync.WaitGroup
	for i := range visitors {
		wg.Go(func() { errs[i] = visitors[i].run(ctx, r, l) })
	}
	wg.Wait()
	res := result{took: time.Since(begin), cpu: cpuTime(r.procs) - before}
	var times []time.Duration
	for _, v := range visitors {
		res.requests += len(v.times)
		res.bytes += v.bytes
		times = append(times, v.times...)
	}
	if err := errors.Join(errs...); err != nil {
		return res, err
	}
	if len(times) == 0 {
		return res, fmt.Errorf("no request ended within %v", length)
	}
	slices.Sort(times)
	res.p50, res.p99 = times[len(times)/2], times[len(times)*99/100]
	return res, nil
}

// visitor sends one request after the other. It speaks HTTP with as little work
// as it can, since it takes its time from the same CPUs.
type visitor struct {
	times []time.Duration
	bytes int64
}

// run visits until ctx ends; a request that is under way then is finished, and
// counts.
func (v *visitor) run(ctx context.Context, r route, l load) error {
	request := []byte("GET " + l.path + " HTTP/1.1\r\nHost: " + r.host + "\r\n\r\n")
	var conn net.Conn
	var answers *bufio.Reader
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	for ctx.Err() == nil {
		begin := time.Now()
		if conn == nil {
			c, err := net.DialTimeout("tcp", r.addr, 10*time.Second)
			if err != nil {
				return err
			}
			conn, answers = c, bufio.NewReaderSize(c, 64<<10)
		}
		if err := conn.SetDeadline(begin.Add(30 * time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write(request); err != nil {
			return err
		}
		n, err := readAnswer(answers)
		if err != nil {
			return err
		}
		v.bytes += n
		v.times = append(v.times, time.Since(begin))
		if l.fresh {
			conn.Close()
			conn = nil
		}
	}
	return nil
}

// readAnswer reads an answer that is 200 and has a length.
func readAnswer(r *bufio.Reader) (body int64, err error) {
	status, err := r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	if !strings.HasPrefix(status, "HTTP/1.1 200 ") {
		return 0, fmt.Errorf("answer: %q", status)
	}
	length := int64(-1)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			break
		}
		const name = "content-length:"
		if len(line) > len(name) && strings.EqualFold(string(line[:len(name)]), name) {
			if length, err = strconv.ParseInt(strings.TrimSpace(string(line[len(name):])), 10, 64); err != nil {
				return 0, err
			}
		}
	}
	if length < 0 {
		return 0, errors.New("answer without Content-Length")
	}
	return io.CopyN(io.Discard, r, length)
}

// beService is the service on the device: it prints its address, and serves.
func beService(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	small, large := make([]byte, 1<<10), make([]byte, 16<<20)
	body := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Write(b) // a visitor that leaves is none of its business
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/small", body(small))
	mux.Handle("/large", body(large))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { server.Close() })
	fmt.Fprintln(os.Stdout, l.Addr())
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
