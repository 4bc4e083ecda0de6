package tunnelcore

import (
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// enroll posts a body to where devices enrol.
func (e *edge) enroll(method, body string, headers ...string) (int, EnrollAnswer, wire.ErrorBody, http.Header) {
	e.t.Helper()
	r, err := http.NewRequest(method, e.server.URL+EnrollPath, strings.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	res, err := e.server.Client().Do(r)
	if err != nil {
		e.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	var ok EnrollAnswer
	var bad wire.ErrorBody
	if err := json.Unmarshal(text, &ok); err != nil {
		e.t.Errorf("body %q: %v", text, err)
	}
	if err := json.Unmarshal(text, &bad); err != nil {
		e.t.Errorf("body %q: %v", text, err)
	}
	return res.StatusCode, ok, bad, res.Header
}

func (e *edge) enrollBy(device, code string) (int, string) {
	e.t.Helper()
	body, err := json.Marshal(EnrollRequest{Device: device, Code: code})
	if err != nil {
		e.t.Fatal(err)
	}
	status, ok, bad, _ := e.enroll("POST", string(body))
	if status == 200 && ok.Device != device || status == 401 && bad.Error != wire.Unauthorized {
		e.t.Errorf("%d %+v %+v", status, ok, bad)
	}
	return status, ok.Token
}

func (e *edge) code(device string) string {
	e.t.Helper()
	code, c, err := e.hub.NewCode(e.t.Context(), device, time.Hour)
	if err != nil {
		e.t.Fatal(err)
	}
	if !regexp.MustCompile(`^([0-9A-HJKMNP-TV-Z]{5}-){3}[0-9A-HJKMNP-TV-Z]{5}$`).MatchString(code) || strings.Contains(code, c.ID) {
		e.t.Errorf("code %q, id %q", code, c.ID)
	}
	return code
}

func startEnrolling(t *testing.T, change func(*Settings)) *edge {
	t.Helper()
	reg := newAway(t).Registry
	return startEdgeOver(t, reg, func(s *Settings) {
		s.Authenticators, s.Enrollment = []Authenticator{bySecret(reg)}, true
		if change != nil {
			change(s)
		}
	})
}

func TestEnrollByCode(t *testing.T) {
	e := startEnrolling(t, nil)
	code := e.code("")
	status, token := e.enrollBy("cam-17", strings.ToLower(strings.ReplaceAll(code, "-", " ")))
	if status != 200 || len(token) != 5+43 || !strings.HasPrefix(token, "iott_") {
		t.Fatalf("%d %q", status, token)
	}
	h := hello("cam-17")
	s, err := e.dial(wire.ControlPath+"?"+h.Query(), token)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a := &fakeAgent{e: e, sock: s}
	a.receive()

	if status, _ := e.enrollBy("cam-18", code); status != 401 {
		t.Errorf("a code that was used: %d", status)
	}
	// A code of no device is no way to become one that exists, revoked ones among them.
	free := e.code("")
	if status, _ := e.enrollBy("cam-17", free); status != 401 {
		t.Errorf("of a device that is enrolled: %d", status)
	}
	if err := e.hub.Revoke(t.Context(), "cam-19"); err != nil {
		t.Fatal(err)
	}
	if status, _ := e.enrollBy("cam-19", free); status != 401 {
		t.Errorf("of a device that is revoked: %d", status)
	}
	if status, _ := e.enrollBy("cam-20", free); status != 200 {
		t.Errorf("the code was lost: %d", status)
	}
	// One that was made for a device is, and ends its old secret.
	own := e.code("cam-17")
	if status, _ := e.enrollBy("cam-21", own); status != 401 {
		t.Errorf("another device's code: %d", status)
	}
	status, next := e.enrollBy("cam-17", own)
	if status != 200 || next == token {
		t.Errorf("%d %q", status, next)
	}
	if c := a.closed(); c.Code != wire.CloseRevoked {
		t.Errorf("the tunnel by the old secret: %v", c)
	}
	if got, _, _ := e.refusal(wire.ControlPath+"?"+h.Query(), token); got != 401 {
		t.Errorf("the old secret: %d", got)
	}
}

func TestEnrollOnce(t *testing.T) {
	e := startEnrolling(t, nil)
	code := e.code("")
	var wg sync.WaitGroup
	got := make(chan int, 8)
	for _, device := range []string{"a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8"} {
		wg.Go(func() {
			status, _ := e.enrollBy(device, code)
			got <- status
		})
	}
	wg.Wait()
	close(got)
	count := map[int]int{}
	for status := range got {
		count[status]++
	}
	if count[200] != 1 || count[401] != 7 {
		t.Errorf("answers: %v", count)
	}
}

func TestEnrollRefusals(t *testing.T) {
	e := startEnrolling(t, nil)
	good := `{"device":"cam-17","code":"` + e.code("") + `"}`
	for _, c := range []struct {
		what, method, body string
		headers            []string
		status             int
		code               wire.Code
		says               string
	}{
		{"GET", "GET", "", nil, 400, wire.BadRequest, "POST"},
		{"a web page", "POST", good, []string{"Origin", "https://example.com"}, 403, wire.Forbidden, "Origin"},
		{"a long body", "POST", good + strings.Repeat(" ", maxEnroll), nil, 400, wire.BadRequest, "1024"},
		{"no JSON", "POST", "device=cam-17", nil, 400, wire.BadRequest, "JSON"},
		{"no code", "POST", `{"device":"cam-17"}`, nil, 400, wire.BadRequest, "code is missing"},
		{"no device", "POST", `{"code":"x"}`, nil, 400, wire.BadRequest, "device"},
		{"a bad device", "POST", `{"device":"Cam 17","code":"x"}`, nil, 400, wire.BadRequest, "device"},
		{"another code", "POST", `{"device":"cam-17","code":"x"}`, nil, 401, wire.Unauthorized, "code"},
		{"a long header", "POST", good, []string{"X", strings.Repeat("x", 9000)}, 400, wire.BadRequest, "header"},
	} {
		status, _, body, header := e.enroll(c.method, c.body, c.headers...)
		if status != c.status || body.Error != c.code || !strings.Contains(body.Message, c.says) || header.Get("Iottunnel-Error") != string(c.code) {
			t.Errorf("%s: %d %+v", c.what, status, body)
		}
	}
	e.from = netip.MustParseAddr("203.0.113.9")
	if status, _, body, _ := e.enroll("POST", good); status != 403 || body.Error != wire.Forbidden {
		t.Errorf("without TLS: %d %+v", status, body)
	}
	e.change(func(s *Settings) { s.AllowPlaintext = true })
	if status, answer, _, header := e.enroll("POST", good); status != 200 || answer.Token == "" || header.Get("Cache-Control") != "no-store" {
		t.Errorf("allowed: %d %v", status, header)
	}
	if strings.Contains(e.log.String(), "iott_") {
		t.Error("the log holds a secret")
	}
}

// Who guesses codes is slowed down, whatever devices it names, and keeps no agent
// behind the same address out.
func TestEnrollIsRateLimited(t *testing.T) {
	e := startEnrolling(t, func(s *Settings) { s.Limits.UnauthenticatedPerAddress = 3 })
	for i, device := range []string{"a1", "a2", "a3", "a4"} {
		want := 401
		if i == 3 {
			want = 429
		}
		if status, _ := e.enrollBy(device, "GUESS"); status != want {
			t.Errorf("guess %d: %d, want %d", i, status, want)
		}
	}
	if status, _ := e.enrollBy("a5", e.code("")); status != 429 {
		t.Errorf("a good code after many bad ones: %d", status)
	}
	token, err := e.hub.Enroll(t.Context(), "cam-17", registry.ReplaceNone)
	if err != nil {
		t.Fatal(err)
	}
	h := hello("cam-17")
	s, err := e.dial(wire.ControlPath+"?"+h.Query(), token)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// Whoever has many addresses is slowed down, too. Codes that are right cost nothing.
func TestWrongCodesOfAll(t *testing.T) {
	e := startEnrolling(t, func(s *Settings) { s.AllowPlaintext = true })
	e.hub.guesses.set(2, 0)
	e.from = netip.MustParseAddr("203.0.113.9")
	enroll := func(device, code string, want int) {
		t.Helper()
		e.from = e.from.Next()
		if status, _ := e.enrollBy(device, code); status != want {
			t.Errorf("%s: %d, want %d", device, status, want)
		}
	}
	for _, device := range []string{"a1", "a2", "a3"} {
		enroll(device, e.code(""), 200)
	}
	enroll("b1", "GUESS", 401)
	enroll("b2", e.code(""), 200)
	enroll("b3", "GUESS", 401)
	enroll("b4", "GUESS", 429)
	good := e.code("")
	enroll("a4", good, 429)
	e.hub.guesses.giveBack() // as time does
	enroll("a4", good, 200)
}

func TestEnrollOff(t *testing.T) {
	e := startEdge(t, nil)
	if status, _, body, _ := e.enroll("POST", `{}`); status != 400 || !strings.Contains(body.Message, "auth enrolled") {
		t.Errorf("%d %+v", status, body)
	}
}
