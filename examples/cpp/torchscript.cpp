// Run the model.pt of torch.trace, torch.script or torch.quantize_* by libtorch.
#include <torch/script.h>

#include "arguments.h"

static void run(const Arguments& given) {
    c10::InferenceMode guard;
    torch::jit::Module module = torch::jit::load(given.model);
    torch::Tensor input = torch::from_blob(const_cast<float*>(given.values.data()), given.shape);
    torch::Tensor output = module.forward({input}).toTensor().contiguous();
    print(output.const_data_ptr<float>(), output.size(0), output.numel() / output.size(0));
}

int main(int argc, char** argv) { return guarded(run, argc, argv); }
