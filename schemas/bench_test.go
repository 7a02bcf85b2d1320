package schemas

import "testing"

// plainPod is a pod as a Deployment makes it: what admission checks most.
const plainPod = `apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: default, labels: {app: web, pod-template-hash: abc}}
spec:
  containers:
  - name: web
    image: registry.test/web:1
    env: [{name: A, value: b}]
    ports: [{name: http, containerPort: 8080}]
    resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 64Mi}}
    readinessProbe: {httpGet: {path: /, port: 8080}}
`

// BenchmarkPlainPod is the cost of defaulting and checking one plain pod.
func BenchmarkPlainPod(b *testing.B) {
	o := mustDecode(b, plainPod)
	Default(o)
	b.ReportAllocs()
	for b.Loop() {
		Default(o)
		if errs := Validate(o); len(errs) > 0 {
			b.Fatal(errs)
		}
	}
}
