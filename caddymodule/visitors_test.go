package caddymodule

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// TestStreamsPerAddress lets one address have no more than its share of a device,
// while another address is served.
func TestStreamsPerAddress(t *testing.T) {
	f := start(t, config{app: "limits {\nstreams_per_address 2\n}"})
	var now, most atomic.Int32
	release := make(chan struct{})
	d := f.connect("cam-1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/echo" {
			testSite().ServeHTTP(w, r)
			return
		}
		if r.URL.Path == "/held" {
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-release
		}
		fmt.Fprint(w, "done")
	}))
	page := d.up.Ports[0].URL
	f.upgrade(d.up.Hostname).mustEcho(t, "one of the two")
	got := make(chan error, 3)
	for range 3 {
		go func() { // ends with its answer
			res, err := f.client().Get(page + "held")
			if err == nil {
				res.Body.Close()
				if res.StatusCode != 200 {
					err = fmt.Errorf("status %d", res.StatusCode)
				}
			}
			got <- err
		}()
	}
	for now.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond) // for the others to come, if they may
	other := f.client()
	other.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		return from.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", f.port))
	}
	if res, err := other.Get(page); err != nil || res.StatusCode != 200 {
		t.Errorf("from another address: %v %v", res, err)
	} else {
		res.Body.Close()
	}
	close(release)
	for range 3 {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	if m := most.Load(); m != 1 {
		t.Errorf("the device had %d requests of one address at once, beside a WebSocket, want 1", m)
	}
}
