package harness

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// WriteOwn writes an nginx.conf without the Lua router, for servers that are there
// without it, too.
func (n *Nginx) WriteOwn(sites string) error {
	text := "load_module " + nginxModules + "/ndk_http_module.so;\nload_module " + nginxModules + "/ngx_http_lua_module.so;\n" +
		"daemon off;\nuser root;\npid nginx.pid;\nerror_log stderr info;\nevents {}\nhttp {\n\taccess_log off;\n\tproxy_temp_path proxy_temp;\n" +
		"\tserver { listen " + n.Addr() + "; return 200; }\n" + strings.ReplaceAll(sites, "OTHER", n.OtherAddr()) + "\n}\n"
	return os.WriteFile(filepath.Join(n.Dir, "nginx.conf"), []byte(text), 0o600)
}

// Monitor counts, from now on, the commands that Redis carries out with part in
// them; what it returns says how many there have been.
func Monitor(tb testing.TB, r *Redis, part string) func() int {
	tb.Helper()
	args := []string{"redis-cli", "-p", strconv.Itoa(r.Port)}
	p := Run(tb, Command{Name: "redis-cli monitor", Args: append(append(args, r.login...), "MONITOR")})
	p.WaitStdout(tb, 0, UpTime, "OK")
	return func() (n int) {
		for _, line := range p.Stdout.Since(0) {
			if strings.Contains(line, part) {
				n++
			}
		}
		return n
	}
}

// WriteCertificate writes a certificate for a name, the authority's behind it, and
// its key into files of dir.
func WriteCertificate(tb testing.TB, dir, name string) (certFile, keyFile, authority string) {
	tb.Helper()
	a := NewAuthority(tb)
	certFile, keyFile, err := a.write(dir, name)
	if err != nil {
		tb.Fatal(err)
	}
	return certFile, keyFile, a.File
}

// write makes a certificate for a name and writes it and its key into files of dir.
func (a *Authority) write(dir, name string) (certFile, keyFile string, err error) {
	c, err := a.Certify(name)
	if err != nil {
		return "", "", err
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return "", "", err
	}
	file := filepath.Join(dir, strings.ReplaceAll(name, "*", "any"))
	certFile, keyFile = file+".crt", file+".key"
	return certFile, keyFile, errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600),
	)
}
