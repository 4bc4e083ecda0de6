package device

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// serve is a device behind a real server.
func serve(t *testing.T) (*Device, *httptest.Server) {
	t.Helper()
	d := start(t)
	s := httptest.NewServer(d.Handler())
	t.Cleanup(s.Close)
	s.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return d, s
}

func get(t *testing.T, s *httptest.Server, path string) (*http.Response, string) {
	t.Helper()
	resp, err := s.Client().Get(s.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body(t, resp)
}

func body(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPage(t *testing.T) {
	_, s := serve(t)
	resp, page := get(t, s, "/")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%s %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	if policy := resp.Header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") {
		t.Errorf("Content-Security-Policy: %s", policy)
	}
	if strings.Contains(page, "<style") || regexp.MustCompile(`\son\w+=|style=|https?://`).MatchString(page) {
		t.Error("the page has inline styles or handlers, or refers to another host")
	}
	files := regexp.MustCompile(`/assets/[a-z]+\.[0-9a-f]{12}\.(css|js|svg)`).FindAllString(page, -1)
	if len(files) != 4 {
		t.Errorf("assets in the page: %v", files)
	}
	for _, file := range files {
		resp, content := get(t, s, file)
		if resp.StatusCode != 200 || content == "" || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %s, %d bytes, %s", file, resp.Status, len(content), resp.Header.Get("Cache-Control"))
		}
	}
	for _, path := range []string{"/nothing", "/assets/app.js", "/assets/index.html", "/page/index.html"} {
		if resp, _ := get(t, s, path); resp.StatusCode != 404 {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// TestSettings: post, redirect, get; and a hostile name is text in the page.
func TestSettings(t *testing.T) {
	d, s := serve(t)
	hostile := `"><script>alert('x')</script>`
	resp, err := s.Client().PostForm(s.URL+"/settings", url.Values{"name": {hostile}, "unit": {"F"}, "alarm": {"50"}})
	if err != nil {
		t.Fatal(err)
	}
	body(t, resp)
	if resp.StatusCode != 303 || resp.Header.Get("Location") != "/?saved#settings" {
		t.Fatalf("%s to %s", resp.Status, resp.Header.Get("Location"))
	}
	if want := (Settings{hostile, Fahrenheit, 10}); d.Settings() != want {
		t.Errorf("settings %v, want %v", d.Settings(), want)
	}
	_, page := get(t, s, "/?saved")
	if strings.Contains(page, "<script>alert") || !strings.Contains(page, "&lt;script&gt;alert(") {
		t.Error("the name is not text in the page")
	}
	if !strings.Contains(page, "Saved.") || !strings.Contains(page, " °F") {
		t.Error("the page does not show what was saved")
	}
}

func TestSettingsProblems(t *testing.T) {
	d, s := serve(t)
	before := d.Settings()
	post := func(contentType, form string, header ...string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequest("POST", s.URL+"/settings", strings.NewReader(form))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", contentType)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return resp, body(t, resp)
	}
	const urlencoded = "application/x-www-form-urlencoded"
	resp, page := post(urlencoded, "name=%ff&unit=C&alarm=%3Cb%3E")
	if resp.StatusCode != 422 || strings.Count(page, `aria-invalid="true"`) != 2 || !strings.Contains(page, `value="&lt;b&gt;"`) {
		t.Errorf("a bad form: %s\n%s", resp.Status, page)
	}
	if resp, _ := post(urlencoded, "name="+strings.Repeat("x", 2*formMax)); resp.StatusCode != 413 {
		t.Errorf("a huge form: %s", resp.Status)
	}
	if resp, _ := post(urlencoded, "name=%"); resp.StatusCode != 400 {
		t.Errorf("a malformed form: %s", resp.Status)
	}
	good := "name=a&unit=C&alarm=1"
	if resp, _ := post(urlencoded, good, "Sec-Fetch-Site", "cross-site"); resp.StatusCode != 403 {
		t.Errorf("a form of another site: %s", resp.Status)
	}
	if resp, _ := post(urlencoded, good, "Origin", "https://evil.example"); resp.StatusCode != 403 {
		t.Errorf("a form of another origin: %s", resp.Status)
	}
	if d.Settings() != before {
		t.Errorf("settings changed to %v", d.Settings())
	}
	if resp, _ := get(t, s, "/settings"); resp.StatusCode != 405 {
		t.Errorf("GET /settings: %s", resp.Status)
	}
}

// TestFirmware: as a bare body of unknown length, as a form, and broken off.
func TestFirmware(t *testing.T) {
	d, s := serve(t)
	image := make([]byte, 3<<20+17)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(image) // never fails
	sum := sha256.Sum256(image)
	check := func(resp *http.Response, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		var f Firmware
		if text := body(t, resp); resp.StatusCode != 200 || json.Unmarshal([]byte(text), &f) != nil {
			t.Fatalf("%s %s", resp.Status, text)
		}
		if f.Bytes != int64(len(image)) || f.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("got %+v", f)
		}
	}
	check(s.Client().Post(s.URL+"/firmware", "application/octet-stream", io.MultiReader(bytes.NewReader(image)))) // chunked

	var form bytes.Buffer
	m := multipart.NewWriter(&form)
	part, err := m.CreateFormFile("image", "v2.bin")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = part.Write(image) // a bytes.Buffer does not fail
	m.Close()
	check(s.Client().Post(s.URL+"/firmware", m.FormDataContentType(), &form))

	if _, page := get(t, s, "/"); !strings.Contains(page, hex.EncodeToString(sum[:])) {
		t.Error("the page does not show the last upload")
	}

	d.setFirmware(Firmware{})
	broken := io.MultiReader(bytes.NewReader(image), failingReader{})
	if resp, err := s.Client().Post(s.URL+"/firmware", "application/octet-stream", broken); err == nil {
		t.Errorf("an upload that broke off: %s", resp.Status)
		resp.Body.Close()
	}
	if f := d.form(false).Firmware; f.Bytes != 0 {
		t.Errorf("an upload that broke off counts: %+v", f)
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, fmt.Errorf("unplugged") }

func TestDownload(t *testing.T) {
	_, s := serve(t)
	var sums []string
	for _, n := range []int{0, 1, piece, 3*piece + 5, 3*piece + 5} {
		resp, b := get(t, s, fmt.Sprintf("/download?bytes=%d", n))
		if resp.StatusCode != 200 || resp.ContentLength != int64(n) || len(b) != n {
			t.Fatalf("%d bytes: %s, length %d, got %d", n, resp.Status, resp.ContentLength, len(b))
		}
		sum := sha256.Sum256([]byte(b))
		sums = append(sums, hex.EncodeToString(sum[:]))
	}
	if sums[3] != sums[4] {
		t.Error("two downloads differ")
	}
	// The bytes are part of what others may rely on.
	if want := "ce64b5ed837b819f491377cad44ffdb7fa7d16e8505af61c0d1386f34a3856ca"; sums[3] != want {
		t.Errorf("SHA-256 of %d bytes: %s, want %s", 3*piece+5, sums[3], want)
	}
	for _, q := range []string{"", "?bytes=", "?bytes=-1", "?bytes=1e3", "?bytes=99999999999999"} {
		if resp, _ := get(t, s, "/download"+q); resp.StatusCode != 400 {
			t.Errorf("%q: %s", q, resp.Status)
		}
	}
	resp, err := s.Client().Head(s.URL + "/download?bytes=1000000000000")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("HEAD beyond the limit: %s", resp.Status)
	}
	resp, err = s.Client().Head(s.URL + "/download?bytes=1000000000")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.ContentLength != 1000000000 {
		t.Errorf("HEAD: %s, %d bytes", resp.Status, resp.ContentLength)
	}
}

func TestReading(t *testing.T) {
	d, s := serve(t)
	d.Set(Settings{Name: "Cellar", Unit: Fahrenheit, Alarm: -40})
	resp, text := get(t, s, "/api/reading")
	var r readingJSON
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	if resp.Header.Get("Content-Type") != "application/json" || r.Name != "Cellar" || !r.Alarm || !strings.HasSuffix(r.Text, " °F") {
		t.Errorf("%s: %s", resp.Header.Get("Content-Type"), text)
	}
	resp, csv := get(t, s, "/readings.csv")
	lines := strings.Split(strings.TrimSuffix(csv, "\r\n"), "\r\n")
	if len(lines) != historyLength+1 || lines[0] != "time,celsius,door_open" {
		t.Errorf("%s: %d lines, first %q", resp.Status, len(lines), lines[0])
	}
	if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z,\d+\.\d\d,(true|false)$`).MatchString(lines[1]) {
		t.Errorf("first reading: %q", lines[1])
	}
}

// event reads the next server-sent event; no name when the stream has ended.
func event(t *testing.T, in *bufio.Reader) (name, data string) {
	t.Helper()
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Errorf("events: %v", err)
			return "", ""
		}
		switch {
		case strings.HasPrefix(line, "event: "):
			name = strings.TrimSpace(line[len("event: "):])
		case strings.HasPrefix(line, "data: "):
			data = strings.TrimSpace(line[len("data: "):])
		case line == "\n" && name != "":
			return name, data
		}
	}
}

// TestEvents: a snapshot, then what happens, for several visitors at once.
func TestEvents(t *testing.T) {
	d, s := serve(t)
	var visitors sync.WaitGroup
	ready := make(chan struct{}, 8)
	for range cap(ready) {
		visitors.Go(func() {
			resp, err := s.Client().Get(s.URL + "/events")
			if err != nil {
				t.Error(err)
				ready <- struct{}{}
				return
			}
			defer resp.Body.Close()
			if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
				t.Errorf("Content-Type: %s", got)
			}
			in := bufio.NewReader(resp.Body)
			name, data := event(t, in)
			ready <- struct{}{}
			var snap snapshotJSON
			if err := json.Unmarshal([]byte(data), &snap); err != nil || name != "snapshot" || len(snap.TimeMS) != historyLength {
				t.Errorf("first event %s: %v", name, err)
				return
			}
			last := snap.TimeMS[len(snap.TimeMS)-1]
			var reading readingJSON
			for seen := map[string]bool{}; !seen["settings"] || !seen["firmware"]; {
				name, data := event(t, in)
				seen[name] = true
				if name == "" {
					return
				}
				if name != "reading" {
					continue
				}
				if err := json.Unmarshal([]byte(data), &reading); err != nil || reading.TimeMS <= last {
					t.Errorf("reading of %d after %d: %v", reading.TimeMS, last, err)
				}
				last = reading.TimeMS
			}
		})
	}
	for range cap(ready) {
		<-ready
	}
	d.Set(Settings{Name: "Cellar", Unit: Celsius, Alarm: 9})
	d.setFirmware(Firmware{Bytes: 1})
	visitors.Wait()
}

// TestStop: a device that stops ends its visitors' streams.
func TestStop(t *testing.T) {
	d := New(Config{Interval: time.Hour, Logger: testLogger})
	s := httptest.NewServer(d.Handler())
	defer s.Close()
	ended := runFor(t, d)
	resp, err := s.Client().Get(s.URL + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	if name, _ := event(t, in); name != "snapshot" {
		t.Fatalf("first event %s", name)
	}
	ended() // returns only once all visitors are gone
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	again, err := s.Client().Get(s.URL + "/events")
	if err != nil {
		t.Fatal(err)
	}
	again.Body.Close()
	if again.StatusCode != 503 || again.Header.Get("Retry-After") == "" {
		t.Errorf("a stopped device answers %s", again.Status)
	}
}
