package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// adminHash is bcrypt of "secret", quick to check.
const adminHash = "$2a$04$AlP/SYH1v7bjKL2xVYUueerd1/vbLFZ.gA6PnBfn6J3Q7aqI8p9j6"

// dashboardSite is a site with a dashboard on a free port, behind basic_auth.
func dashboardSite(t *testing.T, block string) (site, url string) {
	t.Helper()
	port := harness.FreePort(t, 1)
	site = fmt.Sprintf("http://127.0.0.1:%d {\n\tbind 127.0.0.1\n\tbasic_auth {\n\t\tanna %s\n\t}\n\tiottunnel_dashboard {\n\t\t%s\n\t}\n}\n", port, adminHash, block)
	return site, fmt.Sprintf("http://anna:secret@127.0.0.1:%d/", port)
}

// click presses what a selector names.
func (b *browser) click(selector string) {
	b.t.Helper()
	b.until(fmt.Sprintf("!!document.querySelector(%q)", selector))
	b.do(fmt.Sprintf("document.querySelector(%q).click()", selector))
}

// press presses the button of that text in the dialog.
func (b *browser) press(text string) {
	b.t.Helper()
	find := fmt.Sprintf("[...document.querySelectorAll('#details button')].find((b) => b.textContent === %q)", text)
	b.until("!!" + find)
	b.do(find + ".click()")
}

// enter types into a field, and tells it so.
func (b *browser) enter(selector, text string) {
	b.t.Helper()
	b.do(fmt.Sprintf("{ const e = document.querySelector(%q); e.value = %q; e.dispatchEvent(new Event('input', { bubbles: true })); e.dispatchEvent(new Event('change', { bubbles: true })) }", selector, text))
}

// sees waits until the page shows a text, and says where. What is hidden it does not
// see, although that has an innerText.
func (b *browser) sees(selector, text string) {
	b.t.Helper()
	b.until(fmt.Sprintf("((e) => !!e && e.checkVisibility() && e.innerText.includes(%q))(document.querySelector(%q))", text, selector))
}

// ids waits until the rows are those, in that order.
func (b *browser) ids(want ...string) {
	b.t.Helper()
	b.until(fmt.Sprintf("[...document.querySelectorAll('#list .row')].sort((x, y) => parseFloat(x.style.top) - parseFloat(y.style.top)).map((r) => r.querySelector('.name').textContent).join() === %q", strings.Join(want, ",")))
}

func (b *browser) window(width, height int64, dark bool) {
	b.t.Helper()
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}
	if err := chromedp.Do(b.ctx, chromedp.EmulateViewport(width, height), chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		_, err := cdp.Call(ctx, tab, emulation.SetEmulatedMedia, media)
		return err
	})); err != nil {
		b.t.Fatal(err)
	}
}

// TestDashboard clicks through the dashboard as an operator does.
func TestDashboard(t *testing.T) {
	t.Parallel()
	site, url := dashboardSite(t, "")
	f := harness.Own(t, harness.Kinds[0], harness.Setup{Tunnel: []string{"auth enrolled"}, Sites: site})
	ask := func(method, path, body string) {
		t.Helper()
		if status, answer := f.(admin).Admin(t, method, "/iottunnel/"+path, []byte(body)); status != 200 {
			t.Fatalf("%s %s: %d %s", method, path, status, answer)
		}
	}
	b := openBrowser(t)
	b.visit(url)
	b.sees("#empty", "No device yet")
	b.shot("dashboard-empty.png")

	// Devices appear as they come.
	first, second := newSite(t, f), newSite(t, f)
	one, two := first.agent.Device, second.agent.Device
	b.ids(one.ID, two.ID)
	b.sees("#summary", "2 of 2 online")
	b.sees("#summary", "live")
	ask("POST", "devices/door-7/enroll", "")
	ask("PUT", "devices/door-7/tags", `{"tags":["lyon","fw=1.2"]}`)
	b.visit(url)
	b.ids(one.ID, two.ID, "door-7")
	b.shot("dashboard-list.png")

	// Search, filters, order, keyboard.
	b.enter("#search", "lyon")
	b.ids("door-7")
	b.enter("#search", "nothing like it")
	b.sees("#empty", "No device matches")
	b.enter("#search", "")
	b.enter("#tag", "lyon")
	b.ids("door-7")
	b.enter("#tag", "")
	b.click("input[name=state][value=offline]")
	b.ids("door-7")
	b.click("input[name=state][value='']")
	b.click("[data-sort=device]") // it was up
	b.ids("door-7", two.ID, one.ID)
	b.click("[data-sort=device]")
	b.ids(one.ID, two.ID, "door-7")
	key := func(name string) {
		t.Helper()
		b.do(fmt.Sprintf("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: %q, bubbles: true, cancelable: true }))", name))
	}
	key("/")
	b.until("document.activeElement.id === 'search'")
	key("ArrowDown")
	b.until(fmt.Sprintf("document.activeElement.textContent === %q", one.ID))
	key("ArrowDown")
	b.until(fmt.Sprintf("document.activeElement.textContent === %q", two.ID))

	// One device: what is known, its page's code, its traffic, its past.
	b.do("document.activeElement.click()")
	b.sees("#detail-name", two.ID)
	b.sees("#detail-list", "online for")
	b.until("document.querySelector('#detail-code').complete && document.querySelector('#detail-code').naturalWidth > 0")
	b.do("document.querySelector('#detail-past').open = true")
	b.sees("#detail-history", "online")
	ctx, cancel := context.WithCancel(t.Context())
	var visitor sync.WaitGroup
	visitor.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(200 * time.Millisecond): // a visitor's pace
				if r, err := second.client.Get(second.url("/bytes?n=20000")); err == nil {
					io.Copy(io.Discard, r.Body)
					r.Body.Close()
				}
			}
		}
	})
	b.until("!!document.querySelector('#detail-chart polyline')")
	b.shot("dashboard-device.png")
	cancel()
	visitor.Wait()

	// Changes are asked for twice, and done once.
	b.press("Disconnect…")
	b.sees("#detail-actions", "Its agent connects again")
	b.shot("dashboard-confirm.png")
	b.press("Cancel")
	b.press("Tags…")
	b.enter("#detail-actions input", "lyon  north")
	b.press("Save")
	b.sees("#detail-tags", "north")
	b.press("Disconnect…")
	b.press("Disconnect")
	b.sees("#detail-said", "Disconnected")
	b.sees("#detail-list", "online for") // its agent has come back
	b.until("document.querySelectorAll('#detail-history li').length >= 2")
	b.do("document.querySelector('#details').close()")
	b.do("[...document.querySelectorAll('#list .name')].find((n) => n.textContent === 'door-7').click()")
	b.sees("#detail-name", "door-7")
	b.press("Rotate secret…")
	b.press("Rotate")
	b.sees("#detail-said", "The new secret, shown only now")
	b.press("Revoke…")
	b.press("Revoke")
	b.sees("#detail-said", "Revoked")
	b.sees("#detail-list", "revoked")
	b.do("document.querySelector('#details').close()")

	// Offline without a reload of the page; and small, and dark.
	first.agent.Stop(t, 15*time.Second)
	b.until(fmt.Sprintf("[...document.querySelectorAll('#list .row.offline .name')].some((n) => n.textContent === %q)", one.ID))
	b.window(1200, 800, true)
	b.shot("dashboard-dark.png")
	b.window(390, 800, false)
	b.shot("dashboard-phone.png")
	b.click("#list .row .name")
	b.until("document.querySelector('#details').open")
	b.shot("dashboard-phone-device.png")

	// Nothing came from elsewhere, nothing was refused by the policy.
	b.until("performance.getEntriesByType('resource').every((e) => new URL(e.name).host === location.host || e.name.startsWith('data:'))")
}

// hostileAgents are what agents may call themselves.
var hostileAgents = []string{
	`<img src=x onerror="window.hacked=1">`, `<script>window.hacked=1</script>`, `javascript:window.hacked=1`,
	`"><svg onload=window.hacked=1>`, `{{constructor.constructor("window.hacked=1")()}}`,
}

// TestDashboardHostile has devices that call their agents what could be markup: it is
// text in the list's search, in the page of the device, and nowhere else.
func TestDashboardHostile(t *testing.T) {
	t.Parallel()
	site, url := dashboardSite(t, "")
	f := harness.Own(t, harness.Kinds[0], harness.Setup{Sites: site})
	b := openBrowser(t)
	b.visit(url)
	for _, name := range hostileAgents {
		d := f.NewDevice(t)
		header := harness.Bearer(d.Token)
		header.Set("User-Agent", name)
		ws, _, err := harness.DialSocket(t.Context(), f, harness.ControlPath+"?"+harness.Query(d.ID), header)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ws.Close() })
		b.until(fmt.Sprintf("[...document.querySelectorAll('#list .name')].some((n) => n.textContent === %q)", d.ID))
		b.do(fmt.Sprintf("[...document.querySelectorAll('#list .name')].find((n) => n.textContent === %q).click()", d.ID))
		b.sees("#detail-list", name)
		b.until("!document.querySelector('#detail-list img, #detail-list svg, #detail-list script') && !window.hacked")
		if strings.HasPrefix(name, "<img") {
			b.shot("dashboard-hostile.png")
		}
		b.do("document.querySelector('#details').close()")
		if !strings.ContainsAny(name, "<{\"") {
			continue // it would do as a tag
		}
		// The admin API takes no tag, and no device, that is more than a word.
		for _, path := range []string{"/iottunnel/devices/" + d.ID + "/tags", "/iottunnel/devices/%3Cimg%3E/tags"} {
			body, err := json.Marshal(map[string]any{"tags": []string{name}})
			if err != nil {
				t.Fatal(err)
			}
			if status, answer := f.(admin).Admin(t, "PUT", path, body); status != 400 {
				t.Errorf("%s with tag %q: %d %s", path, name, status, answer)
			}
		}
	}
	b.enter("#search", "onerror")
	b.until("document.querySelectorAll('#list .row').length === 1 && !window.hacked")
}

// TestDashboardAccessible reads the page as a screen reader does, and walks through it
// by keys alone.
func TestDashboardAccessible(t *testing.T) {
	t.Parallel()
	site, url := dashboardSite(t, "")
	f := harness.Own(t, harness.Kinds[0], harness.Setup{Tunnel: []string{"auth enrolled"}, Sites: site})
	device := newSite(t, f).agent.Device
	if status, answer := f.(admin).Admin(t, "PUT", "/iottunnel/devices/"+device.ID+"/tags", []byte(`{"tags":["lyon"]}`)); status != 200 {
		t.Fatalf("tags: %d %s", status, answer)
	}
	b := openBrowser(t)
	b.visit(url)
	b.ids(device.ID)
	heard := b.heard()
	for _, want := range []string{
		"heading: Devices", "searchbox: Search", "combobox: Tag", "radio: All", "radio: Online", "radio: Offline", "group: State",
		"table: Devices", "columnheader: State", "columnheader: Device", "button: Hostname", "button: " + device.ID, "image: online",
	} {
		if !slices.Contains(heard, want) {
			t.Errorf("nobody hears %q", want)
		}
	}
	press := func(key string) {
		t.Helper()
		if _, err := chromedp.Run(b.ctx, chromedp.KeyEvent(key)); err != nil {
			t.Fatal(err)
		}
	}
	b.do("document.querySelector('#search').focus(); window.tabbed = []")
	for range 12 { // search, tag, state, four ways to sort, the device, its links
		press(kb.Tab)
		b.do("window.tabbed.push(document.activeElement.textContent || document.activeElement.id || document.activeElement.name)")
	}
	b.until(fmt.Sprintf("['tag', 'state', 'Device', 'Hostname', %q].every((want) => window.tabbed.some((t) => t === want || (want === 'tag' && t.includes('All tags'))))", device.ID))
	b.do("[...document.querySelectorAll('#list .name')][0].focus()")
	press(kb.Enter)
	b.sees("#detail-name", device.ID)
	b.until("document.querySelector('#details').contains(document.activeElement)")
	b.until("[...document.querySelectorAll('#details button')].some((b) => b.textContent === 'Disconnect…')")
	heard = b.heard()
	for _, want := range []string{"dialog: " + device.ID, "button: Close", "button: Disconnect…", "button: Tags…"} {
		if !slices.Contains(heard, want) {
			t.Errorf("in the dialog nobody hears %q", want)
		}
	}
	press(kb.Escape)
	b.until("!document.querySelector('#details').open")
	b.until(fmt.Sprintf("document.activeElement.textContent === %q", device.ID)) // the keyboard is where it was
}

// heard is what a screen reader tells of the page, as `role: name`. Nothing that can be
// used may be without a name.
func (b *browser) heard() (heard []string) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		tree, err := cdp.Call(ctx, tab, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
		if err != nil {
			return err
		}
		text := func(v *accessibility.Value) (s string) {
			if v != nil {
				_ = json.Unmarshal(v.Value, &s) // other kinds are no text
			}
			return s
		}
		for _, n := range tree.Nodes {
			if n.Ignored {
				continue
			}
			role, name := text(n.Role), text(n.Name)
			heard = append(heard, role+": "+name)
			switch role {
			case "button", "link", "searchbox", "combobox", "radio", "checkbox", "textbox", "dialog", "image", "table", "meter":
				if name == "" {
					b.t.Errorf("a %s has no name", role)
				}
			}
		}
		return nil
	})); err != nil {
		b.t.Fatal(err)
	}
	return heard
}

// TestDashboardLosesEdge has the edge stop under a page: it says so, and goes on when
// the edge is back.
func TestDashboardLosesEdge(t *testing.T) {
	t.Parallel()
	port := harness.FreePort(t, 1)
	config := plainRig("") + fmt.Sprintf("http://127.0.0.1:%d {\n\tbind 127.0.0.1\n\tiottunnel_dashboard\n}\n", port)
	r := startRig(t, config)
	r.agent(t, "cam-1", "token-of-cam-1", harness.StartOrigin(t).Addr)
	b := openBrowser(t)
	b.visit(fmt.Sprintf("http://127.0.0.1:%d/", port))
	b.ids("cam-1")
	b.sees("#summary", "live")
	r.Stop(t, harness.Patience)
	b.sees("#summary", "Not up to date since")
	b.ids("cam-1") // what was known stays
	b.shot("dashboard-error.png")
	harness.Run(t, harness.Command{Name: "caddy again", Dir: r.dir, Env: r.env, Args: []string{harness.Binary(t, "caddy"), "run", "--config", r.file, "--adapter", "caddyfile"}})
	b.sees("#summary", "live")
	b.until("!document.querySelector('#summary').classList.contains('bad')")
}

// TestDashboardLarge has a large fleet in the page, of which only what is in sight is
// in the document.
func TestDashboardLarge(t *testing.T) {
	t.Parallel()
	size := 3000
	if heavy {
		size = 100_000
	}
	site, url := dashboardSite(t, "read_only")
	f := harness.Own(t, harness.Kinds[0], harness.Setup{Sites: site})
	until := time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339)
	for first := 0; first < size; first += 500 {
		var lines strings.Builder
		for i := first; i < min(size, first+500); i++ {
			fmt.Fprintf(&lines, `{"device":"fleet-%06d","label":"l%06d","lease_until":%q}`+"\n", i, i, until)
		}
		if status, answer := f.(admin).Admin(t, "POST", "/iottunnel/import", []byte(lines.String())); status != 200 || !strings.Contains(string(answer), `"failed":[]`) {
			t.Fatalf("import: %d %.300s", status, answer)
		}
	}
	b := openBrowser(t)
	began := time.Now()
	b.visit(url)
	patiently(b, time.Minute, "!!document.querySelector('#list .row')")
	t.Logf("the first rows are there after %v", time.Since(began).Round(10*time.Millisecond))
	patiently(b, 4*time.Minute, fmt.Sprintf("document.querySelector('#summary').innerText.includes('of %s online') && document.querySelector('#summary').innerText.includes('live')", thousands(size)))
	t.Logf("%d devices are in the page after %v", size, time.Since(began).Round(10*time.Millisecond))
	last := fmt.Sprintf("fleet-%06d", size-1)
	b.do("window.began = performance.now()")
	b.enter("#search", last)
	b.ids(last)
	b.enter("#search", "")
	b.do("window.took = (performance.now() - window.began) / 2; document.querySelector('#viewport').scrollTop = 1e9")
	b.until(fmt.Sprintf("[...document.querySelectorAll('#list .name')].some((n) => n.textContent === %q)", last))
	b.until("document.querySelectorAll('#list .row').length < 100")
	b.click("[data-sort=hostname]")
	b.click("[data-sort=hostname]")
	b.until(fmt.Sprintf("[...document.querySelectorAll('#list .row')].find((r) => r.style.top === '0px')?.querySelector('.name').textContent === %q", last))
	b.shot("dashboard-large.png")
	if ms, err := chromedp.Run(b.ctx, chromedp.Evaluate[float64]("window.took")); err == nil {
		t.Logf("a search takes some %.0f ms, polling included", ms)
	}
	if heap, err := chromedp.Run(b.ctx, chromedp.Evaluate[float64]("performance.memory.usedJSHeapSize / 2**20")); err == nil {
		t.Logf("the page's heap is %.0f MiB", heap)
	}
}

// admin is a face whose admin API can be asked.
type admin interface {
	Admin(tb testing.TB, method, path string, body []byte) (status int, answer []byte)
}

// patiently is until for what takes its time.
func patiently(b *browser, within time.Duration, js string) {
	b.t.Helper()
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		if ok, _ := chromedp.Run(b.ctx, chromedp.Evaluate[bool](js)); ok {
			return
		}
		time.Sleep(50 * time.Millisecond) // polling
	}
	b.until(js)
}

// thousands writes a number as the page does.
func thousands(n int) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
