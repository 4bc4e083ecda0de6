package e2e

import (
	"bytes"
	"context"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestThermometer opens the example's page as people do: with curl, and in a browser,
// where it lives by server-sent events and a WebSocket; then while the device is
// away, and when it is back.
func TestThermometer(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{Tunnel: []string{"wait 200ms"}})
		d := f.NewDevice(t)
		device, url := startThermometer(t, f, d)

		if page := curl(t, f, url); !strings.Contains(page, "<title>Cold room, north door</title>") {
			t.Fatalf("curl: %.300q", page)
		}

		b := openBrowser(t)
		b.visit(url)
		b.until(`document.querySelector("#live").dataset.state === "on"`)   // events
		b.until(`document.querySelector("#socket").dataset.state === "on"`) // WebSocket
		b.until(`document.querySelector("#socket").textContent.includes("Round trip")`)
		b.do(`window.first = document.querySelector("#age").textContent`)
		b.until(`document.querySelector("#age").textContent !== window.first`) // a newer reading
		b.until(`document.querySelector("#value").textContent.endsWith("°C")`)
		b.shot(k.Name() + "-thermometer.png")

		// A click goes out on the WebSocket, and its effect comes back as an event.
		b.do(`document.querySelector("[data-unit=F]").click()`)
		b.until(`document.querySelector("#value").textContent.endsWith("°F")`)

		// The page that is open says that it lost the device; a new visit gets the
		// edge's own page, which becomes the device's by itself.
		device.Stop(t, 15*time.Second)
		b.until(`document.querySelector("#live").dataset.state === "wait"`)
		b.visit(url)
		b.until(`!document.querySelector("#live")`)
		b.shot(k.Name() + "-offline.png")
		b.window(390, 800, true)
		b.shot(k.Name() + "-offline-phone.png")
		b.window(1200, 1000, false)
		_, again := startThermometer(t, f, d)
		if again != url {
			t.Errorf("the URL became %s", again)
		}
		b.until(`document.querySelector("#live")?.dataset.state === "on"`)
		b.shot(k.Name() + "-back.png")
	})
}

func startThermometer(t *testing.T, f harness.Face, d harness.Device) (p *harness.Proc, url string) {
	t.Helper()
	env := []string{"IOTTUNNEL_TOKEN=" + d.Token}
	if ca := f.CAFile(); ca != "" {
		env = append(env, "SSL_CERT_FILE="+ca)
	}
	p = harness.Run(t, harness.Command{
		Name: "thermometer",
		Args: []string{harness.Binary(t, "thermometer"), "--server", f.Servers()[0], "--device", d.ID},
		Env:  env,
	})
	line := p.WaitStdout(t, 0, harness.UpTime, "80/http ")
	return p, strings.TrimPrefix(line, "80/http ")
}

// browser is a tab of a headless Chromium of its own.
type browser struct {
	t   *testing.T
	ctx context.Context
}

// pageTime bounds each step in the browser.
const pageTime = 30 * time.Second

func openBrowser(t *testing.T) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v: install it (apt-get install chromium)", err)
	}
	flags := []chromedp.ExecAllocatorOption{chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1200, 1000)}
	for _, name := range []string{
		"headless", "no-sandbox", "disable-gpu", "disable-quic", "disable-background-networking", "disable-component-update",
		"no-first-run", "disable-extensions", "disable-sync", "disable-dev-shm-usage", "mute-audio",
		"ignore-certificate-errors", // of Caddy's internal CA; TestHTTP2 and others check certificates
	} {
		flags = append(flags, chromedp.Flag(name, true))
	}
	ctx, cancel := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), flags...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel) // waits for the browser's end
	// The first call starts the browser, which a limit on its context would end.
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatal(err)
	}
	return &browser{t: t, ctx: ctx}
}

func (b *browser) visit(url string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageTime)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		b.t.Fatalf("visit %s: %v", url, err)
	}
}

func (b *browser) do(js string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageTime)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[chromedp.Void](js)); err != nil {
		b.t.Fatalf("%s: %v", js, err)
	}
}

// until waits for a condition, over navigations too.
func (b *browser) until(js string) {
	b.t.Helper()
	deadline := time.Now().Add(pageTime)
	for {
		ctx, cancel := context.WithDeadline(b.ctx, deadline)
		ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool](js))
		cancel()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			b.shot("failed.png")
			text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string](`document.title + ": " + document.body.innerText`))
			b.t.Fatalf("not within %v: %s (%v); the page: %.600q", pageTime, js, err, text)
		}
		time.Sleep(50 * time.Millisecond) // polling: the page may be another one meanwhile
	}
}

// shot writes what the browser shows to shots/, and fails on an empty picture.
func (b *browser) shot(name string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageTime)
	defer cancel()
	data, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		b.t.Fatal(err)
	}
	colours := make(map[any]bool)
	bounds := picture.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y += 4 {
		for x := bounds.Min.X; x < bounds.Max.X; x += 4 {
			colours[picture.At(x, y)] = true
		}
	}
	if len(colours) < 5 {
		b.t.Errorf("%s shows %d colours: an empty page", name, len(colours))
	}
	if err := os.MkdirAll("shots", 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("shots", name), data, 0o644); err != nil {
		b.t.Fatal(err)
	}
}
