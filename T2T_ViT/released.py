"""T2T-ViT's released weights: their names, and where their files come from."""

from common.weights.registry import Released

T2T = 'https://github.com/yitu-opensource/T2T-ViT/releases/download/main'

_T2T = {
    't2t_vit_7': '71.7_T2T_ViT_7.pth.tar', 't2t_vit_10': '75.2_T2T_ViT_10.pth.tar',
    't2t_vit_12': '76.5_T2T_ViT_12.pth.tar', 't2t_vit_14': '81.5_T2T_ViT_14.pth.tar',
    't2t_vit_19': '81.9_T2T_ViT_19.pth.tar', 't2t_vit_24': '82.3_T2T_ViT_24.pth.tar',
    't2t_vit_14_384': '83.3_T2T_ViT_14.pth.tar', 't2t_vit_t_14': '81.7_T2T_ViTt_14.pth.tar',
    't2t_vit_t_19': '82.4_T2T_ViTt_19.pth.tar', 't2t_vit_t_24': '82.6_T2T_ViTt_24.pth.tar',
    't2t_vit_14_cifar10': 'cifar10_t2t-vit_14_98.3.pth',
    't2t_vit_14_cifar100': 'cirfar100_t2t-vit-14_88.4.pth',     # spelt so
    't2t_vit_19_cifar10': 'cifar10_t2t-vit_19_98.4.pth',
    't2t_vit_19_cifar100': 'cifar100_t2t-vit-19_89.0.pth'}


def list_released() -> dict[str, Released]:
    """Return {name: Released} of T2T-ViT's released weights."""
    return {f't2t/{name}': Released((f'{T2T}/{file}',)) for name, file in _T2T.items()}
