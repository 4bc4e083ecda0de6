//go:build unix

package main

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const deviceID = "thermometer"

// files are the demo's own, absolute, all in dir.
type files struct {
	dir       string
	token     string // the device's secret
	edgeLog   string
	deviceLog string
}

// prepare makes the folder of the demo on port, with its Caddyfile and, the
// first time, a secret for the device. Names live there too, so that the next
// demo on that port finds them. Only the user may look inside.
func prepare(data, port string, loopback []string) (files, error) {
	dir, err := filepath.Abs(filepath.Join(data, port))
	if err != nil {
		return files{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return files{}, fmt.Errorf("data folder: %w", err)
	}
	f := files{
		dir:       dir,
		token:     filepath.Join(dir, "token"),
		edgeLog:   filepath.Join(dir, "edge.log"),
		deviceLog: filepath.Join(dir, "device.log"),
	}
	secret, err := os.ReadFile(f.token)
	if err != nil || len(secret) == 0 {
		secret = []byte(rand.Text() + "\n")
		if err := os.WriteFile(f.token, secret, 0o600); err != nil {
			return files{}, fmt.Errorf("device's secret: %w", err)
		}
	}
	devices := fmt.Sprintf("%s sha256:%x\n", deviceID, sha256.Sum256([]byte(strings.TrimSpace(string(secret)))))
	if err := os.WriteFile(filepath.Join(dir, "devices.txt"), []byte(devices), 0o600); err != nil {
		return files{}, fmt.Errorf("devices: %w", err)
	}
	caddyfile := fmt.Sprintf(caddyfile, port, strings.Join(loopback, " "))
	if err := os.WriteFile(filepath.Join(dir, "Caddyfile"), []byte(caddyfile), 0o600); err != nil {
		return files{}, fmt.Errorf("edge's configuration: %w", err)
	}
	return f, nil
}

// caddyfile wants the port and the addresses to bind. The edge's working folder
// is the demo's, hence the bare file name. There is no admin endpoint, which
// would collide with that of another Caddy. Outside a route, respond would come
// first.
const caddyfile = `{
	admin off
	persist_config off
	auto_https off
	grace_period 1s
	iottunnel {
		domain localhost
		auth static {
			file devices.txt
		}
	}
}

http://:%s {
	bind %s
	route {
		iottunnel
		respond "This is the edge of the demo. The device's address was printed in the terminal.
" 404
	}
}
`
