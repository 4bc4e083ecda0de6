package e2e

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestReload reloads the edge again and again under a download, events and a
// visitor's WebSocket: nothing breaks, and the agent does not notice.
func TestReload(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		s := newSite(t, f)
		downloader := harness.Visitor(t, f, false)
		downloader.Timeout = 2 * time.Minute

		const n = 1 << 20 // in pieces: more than the reloads take
		resp, err := downloader.Do(request(t, "GET", s.url(fmt.Sprintf("/bytes?n=%d&piece=8192&pause_ms=60", n)), nil))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.CopyN(io.Discard, resp.Body, 8192); err != nil {
			t.Fatal(err)
		}
		feed, ws := s.openFeed(t), s.openSocket(t)
		outMark, errMark := s.agent.Stdout.Mark(), s.agent.Stderr.Mark()

		for i := range 5 {
			f.Reload(t, harness.Setup{AccessLog: i%2 == 0, Tunnel: []string{fmt.Sprintf("wait %ds", i+1)}})
			if err := feed.want(3); err != nil {
				t.Fatalf("reload %d: %v", i+1, err)
			}
			if err := echoes(ws, 1, fmt.Sprintf("after reload %d", i+1)); err != nil {
				t.Fatalf("reload %d: visitor's WebSocket: %v", i+1, err)
			}
			s.client.CloseIdleConnections()
			if r := s.get(t, "/page"); r.StatusCode != 200 {
				t.Fatalf("reload %d: %v", i+1, r)
			}
		}
		rest, err := io.Copy(io.Discard, resp.Body)
		if err != nil || rest != n-8192 {
			t.Errorf("download: %d of %d bytes, %v", rest+8192, n, err)
		}
		if lines := s.agent.Stdout.Since(outMark); len(lines) > 0 {
			t.Errorf("the agent came up again: %q", lines)
		}
		if lines := s.agent.Stderr.Since(errMark); len(lines) > 0 {
			t.Logf("the agent said meanwhile: %q", lines)
		}
	})
}

// TestReloadRevokes takes a device's token away and reloads: its tunnel is cut
// within 5 s with 4003, and others stay.
func TestReloadRevokes(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		s := newSite(t, f)
		mark := s.agent.Stdout.Mark()
		d := f.NewDevice(t)
		h := harness.DialHand(t, f, d)
		f.Reload(t, harness.Setup{Without: []string{d.ID}})
		if code := harness.CloseCode(t, h.Conn, 8*time.Second); code != 4003 {
			t.Errorf("the tunnel was closed with %d", code)
		}
		_, resp, err := harness.DialSocket(t.Context(), f, harness.ControlPath+"?"+harness.Query(d.ID), harness.Bearer(d.Token))
		if a := harness.Refusal(resp); err == nil || a.Status != 401 && a.Status != 403 {
			t.Errorf("after that: %v %v", err, a)
		}
		s.mustServe(t)
		if lines := s.agent.Stdout.Since(mark); len(lines) > 0 {
			t.Errorf("the other agent came up again: %q", lines)
		}
	})
}
