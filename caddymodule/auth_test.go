package caddymodule

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

// provision sets s up as Caddy does.
func provision(s *StaticAuth) error {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	return s.Provision(ctx)
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "devices.txt")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestStaticAuth(t *testing.T) {
	t.Setenv("CAM_3", "from-the-environment")
	s := &StaticAuth{
		Devices: []StaticDevice{
			{"cam-1", "a-secret-of-cam-1"},
			{"cam-2", fmt.Sprintf("sha256:%X", sha256.Sum256([]byte("hashed")))},
			{"cam-3", "{env.CAM_3}"},
		},
		Files: []string{writeFile(t, "# a comment\n\n  cam-4\ta-secret-of-cam-4 \r\n#cam-5 x\n")},
	}
	if err := provision(s); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		device, token string
		want          error
	}{
		{"cam-1", "a-secret-of-cam-1", nil},
		{"cam-1", "a-secret-of-cam-2", errSecret},
		{"cam-1", "", errSecret},
		{"cam-2", "hashed", nil},
		{"cam-2", s.Devices[1].Secret, errSecret},
		{"cam-3", "from-the-environment", nil},
		{"cam-3", "{env.CAM_3}", errSecret},
		{"cam-4", "a-secret-of-cam-4", nil},
		{"cam-5", "x", tunnelcore.ErrNotMine},
		{"", "", tunnelcore.ErrNotMine},
	} {
		err := s.Authenticate(t.Context(), tunnelcore.Credential{Device: c.device, Token: c.token})
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s with %q: %v, want %v", c.device, c.token, err, c.want)
		}
	}
}

func TestStaticAuthRefuses(t *testing.T) {
	const secret = "a-secret-nobody-may-read"
	t.Setenv("EMPTY", "")
	device := func(id, secret string) *StaticAuth { return &StaticAuth{Devices: []StaticDevice{{id, secret}}} }
	file := func(text string) *StaticAuth { return &StaticAuth{Files: []string{writeFile(t, text)}} }
	for _, c := range []struct {
		name string
		auth *StaticAuth
		want string
	}{
		{"nothing", &StaticAuth{}, "no device is listed"},
		{"nothing in a file", file("# none\n"), "no device is listed"},
		{"an odd id", device("CAM", secret), `"CAM"`},
		{"no secret", device("cam-1", ""), "device cam-1: the secret is empty"},
		{"an empty variable", device("cam-1", "{env.EMPTY}"), "{env.EMPTY}"},
		{"an unset variable", device("cam-1", "{env.NOT_SET_ANYWHERE}"), "{env.NOT_SET_ANYWHERE}"},
		{"half a hash", device("cam-1", "sha256:abcd"), "device cam-1: sha256: is not followed by 64 hex digits"},
		{"twice", &StaticAuth{Devices: []StaticDevice{{"cam-1", secret}, {"cam-1", secret}}}, "device cam-1 is listed more than once"},
		{"twice, once in a file", &StaticAuth{
			Devices: []StaticDevice{{"cam-1", secret}},
			Files:   []string{writeFile(t, "\ncam-1 "+secret)},
		}, "devices.txt:2: device cam-1 is listed more than once"},
		{"one word", file("cam-1 " + secret + "\ncam-2\n"), "devices.txt:2: 1 words"},
		{"three words", file("cam-1 a " + secret), "devices.txt:1: 3 words"},
		{"an odd id in a file", file("#\n#\nc:m " + secret), `devices.txt:3: "c:m"`},
		{"a long line", file("cam-1 x\ncam-2 " + strings.Repeat("x", 5000)), "devices.txt:2: "},
		{"no file", &StaticAuth{Files: []string{"/nowhere/devices.txt"}}, "/nowhere/devices.txt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := provision(c.auth)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q in it", err, c.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error tells the secret: %v", err)
			}
		})
	}
}

func TestShortSecretsAreNamed(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	s := &StaticAuth{digests: make(map[string]digest)}
	for id, secret := range map[string]string{"short": "fifteen-letters", "long": "sixteen-letters!"} {
		if err := s.add(id, secret, logger); err != nil {
			t.Fatal(err)
		}
	}
	if text := log.String(); !strings.Contains(text, "device=short") || strings.Contains(text, "device=long") || strings.Contains(text, "fifteen") {
		t.Errorf("logged %s", text)
	}
}
