{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{/* Service and ServiceMonitor of one part; call with root, name, selector, port, values (its prometheus). */}}
{{- define "cilium.metrics" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- toYaml .selector | nindent 4 }}
    {{- include "cilium.labels" .root | nindent 4 }}
  {{- with include "cilium.annotations" (dict "root" .root "more" (dict "prometheus.io/scrape" "true" "prometheus.io/port" (.values.port | int | toString))) }}{{ trim . | nindent 2 }}{{ end }}
spec:
  clusterIP: None
  selector:
    {{- toYaml .selector | nindent 4 }}
  ports:
    - {name: metrics, port: {{ int .values.port }}, protocol: TCP, targetPort: prometheus}
{{- if .values.serviceMonitor.enabled }}
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "cilium.labels" .root | nindent 4 }}
    {{- with .values.serviceMonitor.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with include "cilium.annotations" (dict "root" .root "more" .values.serviceMonitor.annotations) }}{{ trim . | nindent 2 }}{{ end }}
spec:
  selector:
    matchLabels:
      {{- toYaml .selector | nindent 6 }}
  namespaceSelector:
    matchNames: [{{ .root.Release.Namespace }}]
  endpoints:
    - port: metrics
      interval: {{ .values.serviceMonitor.interval }}
      path: /metrics
      honorLabels: true
{{- end }}
{{- end -}}
