package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// bulk is how much the large transfers move.
func bulk() int64 {
	if heavy {
		return 1 << 30
	}
	return 64 << 20
}

// TestBulk moves a lot down and up, alone and both at once, with equal checksums.
func TestBulk(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		s.client.Timeout = 5 * time.Minute
		n := bulk()
		sum := harness.PatternSum(n)
		down := func() {
			resp, err := s.client.Do(request(t, "GET", s.url(fmt.Sprintf("/bytes?n=%d", n)), nil))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, gotSum, err := harness.Sum(resp.Body)
			if err != nil || got != n || gotSum != sum {
				t.Errorf("down: %d of %d bytes, checksum equal: %t, %v", got, n, gotSum == sum, err)
			}
		}
		up := func() {
			req := request(t, "POST", s.url("/sum"), harness.NewPattern(n))
			req.ContentLength = n
			r, err := try(s.client, req)
			if err != nil {
				t.Error(err)
				return
			}
			if seen := echo(t, r); seen.Bytes != n || seen.SHA256 != sum {
				t.Errorf("up: %d of %d bytes, checksum equal: %t", seen.Bytes, n, seen.SHA256 == sum)
			}
		}
		for name, run := range map[string]func(){"down": down, "up": up} {
			began := time.Now()
			run()
			t.Logf("%s: %d MiB in %v", name, n>>20, time.Since(began).Round(time.Millisecond))
		}
		var wg sync.WaitGroup
		wg.Go(down)
		wg.Go(up)
		wg.Wait()
	})
}

// TestCurl has curl do the same, as an operator would, to a file and from one.
func TestCurl(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		curl := func(args ...string) string { t.Helper(); return curl(t, s.face, args...) }
		if page := curl(s.url("/page")); !strings.Contains(page, "the device's page") {
			t.Errorf("page: %q", page)
		}
		const n = 2 << 20
		got, sum, _ := harness.Sum(strings.NewReader(curl(s.url(fmt.Sprintf("/bytes?n=%d", n)))))
		if got != n || sum != harness.PatternSum(n) {
			t.Errorf("download: %d bytes", got)
		}
		// A large body: curl waits for the 100 before it sends it.
		echoed := curl("-H", "Expect: 100-continue", "--data-binary", strings.Repeat("d", 100_000), s.url("/echo"))
		if !strings.Contains(echoed, `"Bytes":100000`) || !strings.Contains(echoed, `"Method":"POST"`) {
			t.Errorf("upload: %.300q", echoed)
		}
		if head := curl("-I", s.url("/bytes?n=777")); !strings.Contains(strings.ToLower(head), "content-length: 777") {
			t.Errorf("HEAD: %q", head)
		}
	})
}

// curl runs curl as a visitor of the face, and returns what it wrote.
func curl(t *testing.T, f harness.Face, args ...string) string {
	t.Helper()
	all := []string{"curl", "-sS", "--fail", "--max-time", "60"}
	if ca := f.CAFile(); ca != "" {
		all = append(all, "--cacert", ca)
	}
	status, out, errs := harness.RunToEnd(t, 90*time.Second, harness.Command{Name: "curl", Args: append(all, args...)})
	if status != 0 {
		t.Fatalf("curl %q ended with %d: %s", args, status, errs)
	}
	return out
}

// TestSlowReader has visitors who do not read: others are served as if they were not
// there, and what they left unread is still right when they read at last.
func TestSlowReader(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		const n = 32 << 20
		var stuck []*http.Response
		for range 4 {
			c := harness.Visitor(t, s.face, true)
			c.Timeout = 2 * time.Minute
			resp, err := c.Do(request(t, "GET", s.url(fmt.Sprintf("/bytes?n=%d", n)), nil))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			stuck = append(stuck, resp)
		}
		for range 50 {
			s.promptly(t, "a page beside visitors who do not read", 5*time.Second)
		}
		want := harness.PatternSum(n)
		for _, resp := range stuck {
			if got, sum, err := harness.Sum(resp.Body); got != n || sum != want || err != nil {
				t.Errorf("read late: %d of %d bytes, %v", got, n, err)
			}
		}
	})
}

// TestPublicPort reaches a device's TCP services at their public ports.
func TestPublicPort(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{TCPPorts: 8})
		setup := harness.AgentSetup{Device: f.NewDevice(t), Forwards: []string{
			"22=" + harness.ServeTCP(t, harness.Echo),
			"5000=" + harness.ServeTCP(t, harness.AnswerAfterEnd),
			fmt.Sprintf("6000=127.0.0.1:%d", harness.FreePort(t, 1)), // nobody there
		}}
		agent := harness.StartAgent(t, f, setup)
		up := agent.Up(t)
		first, last := f.TCPPorts()
		addr := func(port int) string {
			var public int
			a := strings.TrimPrefix(up.URLs[port], "tcp://")
			publicPort(t, up, port)
			if _, err := fmt.Sscanf(a, "127.0.0.1:%d", &public); err != nil || public < first || public > last {
				t.Fatalf("port %d is at %q, want 127.0.0.1 and %d-%d", port, up.URLs[port], first, last)
			}
			return a
		}
		const n = 8 << 20
		t.Run("echo", func(t *testing.T) {
			c := dialTCP(t, addr(22))
			sent := make(chan error, 1)
			go func() { // ends with the connection
				_, err := io.Copy(c, harness.NewPattern(n))
				if err == nil {
					err = c.CloseWrite()
				}
				sent <- err
			}()
			got, sum, err := harness.Sum(c)
			if err != nil || got != n || sum != harness.PatternSum(n) {
				t.Errorf("echo: %d of %d bytes, %v", got, n, err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
		t.Run("half-close", func(t *testing.T) {
			for _, size := range []int64{0, 1, 100_000} {
				c := dialTCP(t, addr(5000))
				if _, err := io.Copy(c, harness.NewPattern(size)); err != nil {
					t.Fatal(err)
				}
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				got, sum, err := harness.Sum(c)
				if err != nil || got != size || sum != harness.PatternSum(size) {
					t.Errorf("%d bytes, then the end: %d came back, %v", size, got, err)
				}
			}
		})
		t.Run("nobody there", func(t *testing.T) {
			if err := tryTCP(addr(6000), "hello"); err == nil {
				t.Error("nobody answers")
			}
		})
		t.Run("reload", func(t *testing.T) {
			c := dialTCP(t, addr(22))
			for i := range 3 {
				f.Reload(t, harness.Setup{TCPPorts: 8, AccessLog: i%2 == 0})
				if err := ping(c, fmt.Sprintf("after reload %d", i+1)); err != nil {
					t.Fatal(err)
				}
			}
		})
		t.Run("the same after a reconnect", func(t *testing.T) {
			before := up
			agent.Kill()
			agent = harness.StartAgent(t, f, setup)
			if up = agent.Up(t); fmt.Sprint(up.URLs) != fmt.Sprint(before.URLs) {
				t.Errorf("ports moved: %v, then %v", before.URLs, up.URLs)
			}
			f.Kill(t)
			f.Start(t)
			if up = agent.Up(t); fmt.Sprint(up.URLs) != fmt.Sprint(before.URLs) {
				t.Errorf("ports moved with the edge's restart: %v, then %v", before.URLs, up.URLs)
			}
			c := dialTCP(t, addr(22))
			if err := ping(c, "still here"); err != nil {
				t.Error(err)
			}
		})
	})
}

// TestStreamsPerAddress opens more connections to a public port than one address may
// have: what is above the limit is closed at once, and there is room again later.
func TestStreamsPerAddress(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{TCPPorts: 2, Limits: []string{"streams_per_address 3"}})
		agent := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"22=" + harness.ServeTCP(t, harness.Echo)}})
		addr := "127.0.0.1:" + publicPort(t, agent.Up(t), 22)
		var open []*net.TCPConn
		for i := range 3 {
			c := dialTCP(t, addr)
			if err := ping(c, "hello"); err != nil {
				t.Fatalf("connection %d: %v", i+1, err)
			}
			open = append(open, c)
		}
		began := time.Now()
		if err := tryTCP(addr, "hello"); err == nil {
			t.Error("a fourth connection is served")
		}
		inTime(t, "a connection beyond the limit of an address is closed", time.Since(began), 5*time.Second)
		open[0].Close()
		harness.Eventually(t, 10*time.Second, "room again", func() error { return tryTCP(addr, "hello") })
		for i, c := range open[1:] {
			if err := ping(c, "hello"); err != nil {
				t.Errorf("connection %d: %v", i+2, err)
			}
		}
	})
}

// TestAllowedAddresses has public ports that take connections from elsewhere only.
func TestAllowedAddresses(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{TCPPorts: 2, TCPAllow: "192.0.2.0/24"})
		agent := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"22=" + harness.ServeTCP(t, harness.Echo)}})
		if err := tryTCP("127.0.0.1:"+publicPort(t, agent.Up(t), 22), "hello"); err == nil {
			t.Error("a connection from 127.0.0.1 is served")
		}
	})
}

// tryTCP has one exchange with the service behind addr. That it is refused may show
// at once, or when something is sent.
func tryTCP(addr, text string) error {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(harness.VisitorTimeout))
	return ping(c, text)
}

func dialTCP(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(harness.VisitorTimeout))
	return c.(*net.TCPConn)
}

// ping sends text and wants it back.
func ping(c io.ReadWriter, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(c, back); err != nil {
		return err
	}
	if string(back) != text {
		return fmt.Errorf("sent %q, got %q", text, back)
	}
	return nil
}
