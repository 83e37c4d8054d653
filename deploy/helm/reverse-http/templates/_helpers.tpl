{{- define "reverse-http.name" -}}
{{- printf "%s-%s" .root.Release.Name .component | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "reverse-http.selector" -}}
app.kubernetes.io/name: {{ printf "reverse-http-%s" .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "reverse-http.labels" -}}
{{ include "reverse-http.selector" . }}
app.kubernetes.io/part-of: reverse-http
app.kubernetes.io/version: {{ .root.Chart.AppVersion | replace "+" "_" | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- end }}

{{- define "reverse-http.storeAddress" -}}
{{- .Values.store.memcachedAddress | default (printf "%s:11211" (include "reverse-http.name" (dict "root" . "component" "memcached"))) -}}
{{- end }}

{{- define "reverse-http.keys" -}}
{{- .Values.auth.existingConfigMap | default (include "reverse-http.name" (dict "root" . "component" "keys")) -}}
{{- end }}

{{- define "reverse-http.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* The name for which a component gets a certificate by ACME; empty without. */ -}}
{{- define "reverse-http.acmeName" -}}
{{- if .Values.acme.enabled -}}
{{- if .Values.certManager.enabled }}{{ fail "acme.enabled and certManager.enabled exclude each other" }}{{ end -}}
{{- required "acme.agentsName and acme.clientsName are the names that agents and clients connect to" .name -}}
{{- end -}}
{{- end }}

{{- define "reverse-http.probe" -}}
httpGet: { path: {{ .path | quote }}, port: admin{{ if .root.Values.admin.tlsSecret }}, scheme: HTTPS{{ end }} }
{{- end }}

{{- /*
The pod of a service: root, component, values (its part of the values), args, volumes (name: source, mounted at /name), ports, ready (path),
acmeName.
*/ -}}
{{- define "reverse-http.pod" -}}
{{- $args := .args }}
{{- $volumes := merge (dict) .volumes (.values.volumes | default dict) }}
{{- with .acmeName }}
{{- $acme := $.root.Values.acme }}
{{- $args = concat $args (list (printf "--acme.domain=%s" .) "--acme.http-listen-address=:8080" "--acme.store-key-file=/acme/key" "--state-dir=/state") }}
{{- with $acme.email }}{{ $args = append $args (printf "--acme.email=%s" .) }}{{ end }}
{{- with $acme.directory }}{{ $args = append $args (printf "--acme.directory=%s" .) }}{{ end }}
{{- $_ := set $volumes "acme" (dict "secret" (dict "secretName" $acme.storeKeySecret "defaultMode" 288)) }}
{{- $_ := set $volumes "state" (dict "emptyDir" (dict "sizeLimit" "16Mi")) }}
{{- end }}
{{- with .root.Values.admin.tlsSecret }}
{{- $args = concat $args (list "--admin.tls.file.cert=/admin-tls/tls.crt" "--admin.tls.file.key=/admin-tls/tls.key") }}
{{- $_ := set $volumes "admin-tls" (dict "secret" (dict "secretName" . "defaultMode" 288)) }}
{{- end }}
metadata:
  labels:
    {{- include "reverse-http.labels" . | nindent 4 }}
  {{- with .values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  # Longer than --drain.delay and --drain.timeout together. There is no preStop hook: --drain.delay replaces it.
  terminationGracePeriodSeconds: {{ add .root.Values.drain.delaySeconds .root.Values.drain.timeoutSeconds 15 }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "reverse-http.selector" . | nindent 10 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    # so that this user can read the secret's files
    fsGroup: 65532
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: {{ .component }}
      image: {{ printf "%s:%s" .root.Values.image.repository (.root.Values.image.tag | default .root.Chart.AppVersion) }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args:
        {{- toYaml $args | nindent 8 }}
        {{- with .values.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      env:
        - name: POD_IP
          valueFrom:
            fieldRef:
              fieldPath: status.podIP
      ports:
        {{- range .ports }}
        - name: {{ .name }}
          containerPort: {{ .port }}
          protocol: {{ .protocol | default "TCP" }}
        {{- end }}
        {{- range .values.extraPorts }}
        - name: {{ .name }}
          containerPort: {{ .containerPort | default .port }}
          protocol: {{ .protocol | default "TCP" }}
        {{- end }}
        {{- if .acmeName }}
        - name: acme
          containerPort: 8080
          protocol: TCP
        {{- end }}
      startupProbe:
        {{- include "reverse-http.probe" (dict "root" .root "path" "/healthz") | nindent 8 }}
        periodSeconds: 1
        failureThreshold: 30
      livenessProbe:
        {{- include "reverse-http.probe" (dict "root" .root "path" "/healthz") | nindent 8 }}
        failureThreshold: 6
      readinessProbe:
        {{- /* the authority reaches ready pods only, so they are ready before they have a certificate */}}
        {{- $ready := ternary (printf "%s&exclude=certificate" .ready) .ready (not (empty .acmeName)) }}
        {{- include "reverse-http.probe" (dict "root" .root "path" $ready) | nindent 8 }}
        periodSeconds: 2
      resources:
        {{- toYaml .values.resources | nindent 8 }}
      securityContext:
        {{- include "reverse-http.containerSecurity" . | nindent 8 }}
      volumeMounts:
        {{- range $name, $source := $volumes }}
        - name: {{ $name }}
          mountPath: /{{ $name }}
          {{- if ne $name "state" }}
          readOnly: true
          {{- end }}
        {{- end }}
  volumes:
    {{- range $name, $source := $volumes }}
    - name: {{ $name }}
      {{- toYaml $source | nindent 6 }}
    {{- end }}
  {{- with .values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- /* The ports of a service to the outside besides its own: those of the values, and that of ACME. */ -}}
{{- define "reverse-http.morePorts" -}}
{{- range .values.extraPorts }}
- name: {{ .name }}
  protocol: {{ .protocol | default "TCP" }}
  port: {{ .port }}
  targetPort: {{ .name }}
{{- end }}
{{- if .acmeName }}
- name: acme
  protocol: TCP
  port: 80
  targetPort: acme
{{- end }}
{{- end }}

{{- /* What proxy and lb have besides their Deployment: budget, autoscaler, and the service that Prometheus reads. */ -}}
{{- define "reverse-http.companions" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "reverse-http.name" . }}
  labels:
    {{- include "reverse-http.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "reverse-http.selector" . | nindent 6 }}
---
# for Prometheus only
apiVersion: v1
kind: Service
metadata:
  name: {{ include "reverse-http.name" (dict "root" .root "component" (printf "%s-admin" .component)) }}
  labels:
    {{- include "reverse-http.labels" . | nindent 4 }}
    app.kubernetes.io/component: admin
spec:
  clusterIP: None
  # keep scraping pods that drain
  publishNotReadyAddresses: true
  selector:
    {{- include "reverse-http.selector" . | nindent 4 }}
  ports:
    - name: admin
      port: 9090
      targetPort: admin
{{- with .values.autoscaling }}
{{- if .enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "reverse-http.name" $ }}
  labels:
    {{- include "reverse-http.labels" $ | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "reverse-http.name" $ }}
  minReplicas: {{ .minReplicas }}
  maxReplicas: {{ .maxReplicas }}
  metrics:
    - type: Pods
      pods:
        metric:
          name: reverse_http_tunnels_active
        target:
          type: AverageValue
          averageValue: {{ .tunnels | quote }}
  behavior:
    scaleDown:
      # a pod that goes moves its agents and waits for its tunnels: one at a time
      stabilizationWindowSeconds: 600
      policies:
        - { type: Pods, value: 1, periodSeconds: {{ add $.root.Values.drain.delaySeconds $.root.Values.drain.timeoutSeconds 60 }} }
{{- end }}
{{- end }}
{{- end }}
